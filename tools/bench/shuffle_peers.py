"""What other loaders hand out, as index streams; each model names the source that it follows.

A model gives the samples of one rank's batch: `batch(step, rank)`. Data: N samples in the order of
packing, shard = sample // PER_SHARD. Loaders with worker processes make batches worker by worker
(torch's DataLoader: batch t of a rank comes from worker t % WORKERS).
"""

import random
from collections.abc import Callable, Iterator
from itertools import islice, pairwise

import numpy as np
import numpy.typing as npt
from webdataset.filters import _shuffle

I64 = npt.NDArray[np.int64]
Batch = Callable[[int, int], I64]  # (step, rank) -> sample numbers

SAMPLES, PER_SHARD = 1_281_167, 1000
RANKS, WORKERS, RANK_BATCH = 8, 8, 128
STREAMS = RANKS * WORKERS


def of_workers(streams: list[I64]) -> Batch:
    """Rank batches of loaders whose workers have a stream each."""

    def batch(step: int, rank: int) -> I64:
        turn, worker = divmod(step, WORKERS)
        stream = streams[rank * WORKERS + worker]
        return stream[turn * RANK_BATCH : (turn + 1) * RANK_BATCH]

    return batch


def of_line(line: I64) -> Batch:
    """Rank batches of loaders that deal one global order out to the ranks, sample by sample."""

    def batch(step: int, rank: int) -> I64:
        size = RANKS * RANK_BATCH
        return line[step * size : (step + 1) * size][rank::RANKS]

    return batch


def uniform() -> Batch:
    """A permutation of all samples (torch's RandomSampler)."""
    return of_line(np.random.default_rng(0).permutation(SAMPLES))


def webdataset_shuffle(size: int, steps: int) -> Batch:
    """`WebDataset(urls, shardshuffle=...).shuffle(size)`, by its own code.

    Shards are permuted, then each goes to one worker (split_by_node, split_by_worker: slices with
    a stride). webdataset/filters.py, `_shuffle(bufsize=size, initial=100)`.
    """
    shards = np.random.default_rng(0).permutation(-(-SAMPLES // PER_SHARD))
    length = (steps // WORKERS + 1) * RANK_BATCH

    def read(worker: int) -> Iterator[int]:
        rank, number = divmod(worker, WORKERS)
        for shard in shards[rank::RANKS][number::WORKERS]:
            yield from range(shard * PER_SHARD, min((shard + 1) * PER_SHARD, SAMPLES))

    def stream(worker: int) -> I64:
        rng = random.Random(worker)
        return np.fromiter(islice(_shuffle(read(worker), bufsize=size, rng=rng), length), np.int64)

    return of_workers([stream(worker) for worker in range(STREAMS)])


def litdata_full(chunk: int) -> Batch:
    """LitData 0.2.76, FullShuffle of chunks of 64 MB.

    litdata/streaming/shuffle.py, `FullShuffle._global_assign`: chunks are permuted and the line of
    chunks is cut into one part per worker; `__call__`: items are permuted within their chunk.
    """
    rng = np.random.default_rng(0)
    starts = rng.permutation(np.arange(0, SAMPLES, chunk))
    line = np.concatenate([np.arange(s, min(s + chunk, SAMPLES)) for s in starts])
    number = line // chunk
    edges = np.linspace(0, SAMPLES, STREAMS + 1).astype(int)
    streams = []
    for low, high in pairwise(edges):
        turns = np.unique(number[low:high], return_inverse=True)[1]
        first = np.full(turns.max() + 1, high)
        np.minimum.at(first, turns, np.arange(low, high))
        order = np.lexsort((rng.random(high - low), first[turns]))  # chunk by chunk as on the line
        streams.append(line[low:high][order])
    return of_workers(streams)


def dali(initial_fill: int, steps: int) -> Batch:
    """DALI 2.4, `fn.readers.webdataset(random_shuffle=True, initial_fill=...)`.

    dali/operators/reader/loader/loader.h, `Loader::ReadOne`: each rank reads its part of the
    samples in their order; a random place of the buffer is handed out and filled with the next.
    """
    length = (steps + 1) * RANK_BATCH

    def stream(rank: int) -> I64:
        rng = np.random.default_rng(rank)
        start = rank * SAMPLES // RANKS
        buffer = np.arange(start, start + initial_fill)
        out = np.empty(length, np.int64)
        for i, place in enumerate(rng.integers(0, initial_fill, length)):
            out[i] = buffer[place]
            buffer[place] = start + initial_fill + i
        return out

    streams = [stream(rank) for rank in range(RANKS)]
    return lambda step, rank: streams[rank][step * RANK_BATCH : (step + 1) * RANK_BATCH]


def energon(longest: int | None, steps: int, parallel: int = 16) -> Batch:
    """Megatron-Energon 7.4, `max_samples_per_sequence=longest`, 16 parallel shard iterators.

    flavors/webdataset/sharder.py, `split_samples_to_workers`, `_split_shards`: a worker owns a
    range of samples, cut at shards and into slices; sample_loader.py, `_slices_iter`: slices in
    random order, 16 open at once, the next sample from one drawn by its slice's length.
    """
    length = (steps // WORKERS + 1) * RANK_BATCH
    edges = np.linspace(0, SAMPLES, STREAMS + 1).astype(int)

    def slices(low: int, high: int) -> Iterator[tuple[int, int]]:
        inner = range((low // PER_SHARD + 1) * PER_SHARD, high, PER_SHARD)
        cuts = [low, *inner, high]
        for start, end in pairwise(cuts):
            parts = max(round((end - start) / longest), 1) if longest else 1
            marks = [start + int(i * (end - start) / parts) for i in range(parts)] + [end]
            yield from pairwise(marks)

    def stream(worker: int) -> Iterator[int]:
        rng = random.Random(worker)
        pending = list(slices(edges[worker], edges[worker + 1]))
        rng.shuffle(pending)
        active = [[*pending.pop(), 0] for _ in range(min(parallel, len(pending)))]
        weights = [end - start for start, end, _ in active]
        while any(weights):
            (chosen,) = rng.choices(range(len(active)), weights)
            start, end, done = active[chosen]
            yield start + done
            active[chosen][2] += 1
            if start + done + 1 == end:
                active[chosen] = [*pending.pop(), 0] if pending else [0, 0, 0]
                weights[chosen] = active[chosen][1] - active[chosen][0]

    made = [np.fromiter(islice(stream(w), length), np.int64) for w in range(STREAMS)]
    return of_workers(made)


def mosaic_py1e(block: int) -> Batch:
    """MosaicML Streaming 0.13, `shuffle_algo="py1e"`, one node, one canonical node.

    streaming/base/shuffle/py1e.py, `get_shuffle_py1e`: shards are permuted, samples within each
    too, then every sample moves by a uniform shift of up to about half a block; the order is dealt
    out to the ranks (base/partition/orig.py).
    """
    rng = np.random.default_rng(0)
    starts = rng.permutation(np.arange(0, SAMPLES, PER_SHARD))
    spans = [rng.permutation(np.arange(s, min(s + PER_SHARD, SAMPLES))) for s in starts]
    positions = np.arange(SAMPLES, dtype=np.float64)
    offset = 0
    for span in spans:
        size = len(span)
        cutoff = max(0.0, (rng.integers(int(0.75 * block), int(1.25 * block)) - size) / 2)
        low, high = max(-cutoff, -offset), min(cutoff, SAMPLES - offset - size)
        positions[offset : offset + size] += rng.uniform(low, high, size)
        offset += size
    return of_line(np.concatenate(spans)[np.argsort(positions)])
