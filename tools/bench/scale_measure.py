"""The constants of pipelines/SCALE.md, measured on this machine: CPU time, memory, bytes; JSON.

python tools/bench/scale_measure.py
"""

import hashlib
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np

from sslpipe import stream
from sslpipe.shards.index import MEMBER, SAMPLE, Index, parse_index, write_index
from sslpipe.shards.manifest import Manifest, Shard, read_manifest, write_manifest
from sslpipe.stream.mixture import STEPS
from sslpipe.stream.order import I64, Order, build_order, slots

sys.path.insert(0, str(Path(__file__).parent))
from scale_run import MIXED, RUN, split_of

SAMPLE_SHARDS = Path(__file__).parents[2] / "shards" / "sample"


def main() -> None:
    print(json.dumps({name: round(value, 4) for name, value in measure()}, indent=1))


def measure() -> Iterator[tuple[str, float]]:
    """The constants, on this machine: CPU seconds, the least of several rounds."""
    with tempfile.TemporaryDirectory() as name:
        yield from of_manifest(Path(name))
        yield "index_us_a_sample", 1e6 * of_index(Path(name)) / RUN.shard
    sizes = np.full(RUN.shards, RUN.shard)
    for kind in ("lanes", "global"):
        lanes = RUN.lanes if kind == "lanes" else 1
        mine = slots(batch_size=RUN.batch, lanes=lanes, rank=100, world_size=RUN.ranks)
        made = build_order(sizes, kind=kind, seed=0, lanes=RUN.lanes, window=RUN.window)
        start = time.process_time()
        made.locate(mine)
        if kind == "lanes":
            yield "lanes_first_s", time.process_time() - start
        steps = iter(range(1, 10**9))
        took = least(partial(walk, made, steps, mine))
        yield f"{kind}_us_a_sample", 1e6 * took / 1000 / len(mine)
    yield "mixture_us_a_sample", 1e6 * of_mixture()
    with stream.open(SAMPLE_SHARDS, batch_size=8, rank=0, world_size=1) as samples:
        yield "state_bytes", len(json.dumps(samples.state_dict()))


def walk(made: Order, steps: Iterator[int], mine: I64) -> None:
    """Locate a rank's samples in 1000 steps."""
    for _ in range(1000):
        made.locate(next(steps) * RUN.batch + mine)


def of_mixture() -> float:
    """Seconds a sample to split and locate batches of three sets on one of many ranks."""
    split = split_of(RUN, 100, RUN.lanes)
    made = [
        build_order(np.full(RUN.shards * part // sum(MIXED), RUN.shard), kind="lanes", seed=part,
                    lanes=RUN.lanes, window=RUN.window)
        for part in MIXED
    ]  # fmt: skip
    firsts = count(step=STEPS)

    def plan() -> None:
        for _ in range(16):
            picks = split.picks(range(first := next(firsts), first + STEPS))
            for corpus, order in enumerate(made):
                order.locate(picks.positions[picks.corpora == corpus])

    return least(plan) / 16 / STEPS / split.share


def of_manifest(folder: Path) -> Iterator[tuple[str, float]]:
    digest = hashlib.sha256(b"").hexdigest()
    shards = tuple(
        Shard(f"images-{n:06d}.tar", RUN.shard, RUN.shard_bytes, digest, digest)
        for n in range(RUN.shards)
    )
    write_manifest(
        Manifest("images", folder, "image", ("height", "width"), {}, (), shards, 0, None)
    )
    del shards
    size = (folder / "manifest.json").stat().st_size
    before = resident()
    kept = read_manifest(folder)
    yield "manifest_bytes_a_shard", size / RUN.shards
    yield "manifest_memory_bytes_a_shard", (resident() - before) / len(kept.shards)
    yield "manifest_us_a_shard", 1e6 * least(lambda: read_manifest(folder)) / RUN.shards


def of_index(folder: Path) -> float:
    """Seconds to read an index of a shard, hash it and look at all its numbers."""
    samples, members = np.zeros(RUN.shard, SAMPLE), np.zeros(RUN.shard, MEMBER)
    samples["first"], samples["members"] = np.arange(RUN.shard), 1
    index = Index(samples, members, ("jpg",), RUN.shard_bytes, hashlib.sha256(b"").hexdigest())
    write_index(folder / "a.tar", index)

    def read() -> None:
        data = (folder / "a.tar.idx").read_bytes()
        hashlib.sha256(data).hexdigest()
        parse_index(data, "a.tar.idx")

    return least(read)


def least(work: Callable[[], object]) -> float:
    """CPU seconds of the quickest of five rounds."""
    found = []
    for _ in range(5):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def resident() -> int:
    """Bytes of this process in memory."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(re.findall(r"VmRSS:\s+(\d+)", text)[0])


if __name__ == "__main__":
    main()
