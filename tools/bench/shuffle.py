"""How well loaders mix class-sorted shards: classes and shards in a batch.

    python tools/bench/shuffle.py [--out tools/BENCHMARKS.md]

The worst case: 1,281,167 samples of 1000 classes, sorted by class, 1000 to a shard; 8 ranks of 8
workers, 128 samples per rank and step. Ours is `sslpipe.stream.order` itself, the others are the
models of shuffle_peers.py. Means over steps 20 to 79; of buffers that grow, also 700 to 719.
Nothing is read: what counts is the order alone. With shuffled packing every row is uniform.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shuffle_peers as peers
from provenance import row
from rich.console import Console
from rich.table import Table
from shuffle_peers import PER_SHARD, RANK_BATCH, RANKS, SAMPLES, Batch

from sslpipe.stream import order

CLASSES = 1000
HEAD = (
    "orders of peers by models; classes per rank batch / classes / shards per global batch "
    "(resident shards): "
)
EARLY, LATE = range(20, 80), range(700, 720)
SIZES = np.diff(np.r_[np.arange(0, SAMPLES, PER_SHARD), SAMPLES])


@dataclass(frozen=True, slots=True)
class Mixing:
    """Distinct classes and shards, means over steps."""

    name: str
    rank_classes: float
    classes: float
    shards: float
    resident: str  # shards that all ranks together hold open or in buffers


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", type=Path, help="append the row there")
    chosen = options.parse_args()
    table = Table("order", "classes, rank", "classes", "shards", "resident shards")
    figures = []
    for mixing in measure_all():
        numbers = mixing.rank_classes, mixing.classes, mixing.shards
        cells = f"{numbers[0]:.1f}", f"{numbers[1]:.0f}", f"{numbers[2]:.0f}"
        table.add_row(mixing.name, *cells, mixing.resident)
        figures.append(f"{mixing.name} {' / '.join(cells)} ({mixing.resident})")
    console = Console()
    console.print(table)
    line = row(HEAD + "; ".join(figures), "webdataset")
    console.print(line, soft_wrap=True)
    if chosen.out:
        with chosen.out.open("a") as file:
            file.write(line + "\n")


def measure_all() -> Iterator[Mixing]:
    """Every row of the table."""
    yield mixing("uniform permutation", peers.uniform(), EARLY, "all")
    for size in (1000, 5000):
        batch = peers.webdataset_shuffle(size, LATE.stop)
        held = f"64 + {64 * size:,} samples"
        yield mixing(f"webdataset shuffle({size}), 20-79", batch, EARLY, held)
        yield mixing(f"webdataset shuffle({size}), 700-719", batch, LATE, held)
    yield mixing("LitData FullShuffle", peers.litdata_full(580), EARLY, "64 chunks")
    yield mixing("DALI initial_fill 1024", peers.dali(1024, EARLY.stop), EARLY, "8 + 8,192 samples")
    yield mixing("Energon slices of 100", peers.energon(100, EARLY.stop), EARLY, "1,024 slices")
    yield mixing("Energon whole shards", peers.energon(None, EARLY.stop), EARLY, "1,024 slices")
    for power in (14, 18):
        held = f"about {2**power * 1.25 / PER_SHARD:.0f}"
        yield mixing(f"Mosaic py1e 2^{power}", peers.mosaic_py1e(2**power), EARLY, held)
    for lanes, window in ((64, 1), (64, 4), (128, 4), (256, 2), (256, 4)):
        batch = ours("lanes", lanes, window)
        yield mixing(f"sslpipe lanes {lanes} x {window}", batch, EARLY, f"{lanes * window:,}")
    yield mixing("sslpipe global", ours("global", None, 1), EARLY, "all")


def ours(kind: order.Kind, lanes: int | None, window: int) -> Batch:
    """Our own order, as the pipeline uses it."""
    size = RANKS * RANK_BATCH
    made = order.build_order(SIZES, kind=kind, seed=0, batch_size=size, lanes=lanes, window=window)

    def batch(step: int, rank: int) -> peers.I64:
        own = order.owned(step, batch_size=size, lanes=made.stride, rank=rank, world_size=RANKS)
        located = made.locate(own)
        return located.shards * PER_SHARD + located.rows

    return batch


def mixing(name: str, batch: Batch, steps: range, resident: str) -> Mixing:
    """Count distinct classes and shards of rank batches and global batches."""
    ranks, classes, shards = [], [], []
    for step in steps:
        parts = [batch(step, rank) for rank in range(RANKS)]
        assert all(len(np.unique(part)) == RANK_BATCH for part in parts)
        ranks += [distinct(part, class_of) for part in parts]
        together = np.concatenate(parts)
        classes.append(distinct(together, class_of))
        shards.append(distinct(together, lambda sample: sample // PER_SHARD))
    return Mixing(name, np.mean(ranks), np.mean(classes), np.mean(shards), resident)


def class_of(samples: peers.I64) -> peers.I64:
    """Classes of equal size, sorted."""
    return samples * CLASSES // SAMPLES


def distinct(samples: peers.I64, kind: Callable[[peers.I64], peers.I64]) -> int:
    return len(np.unique(kind(samples)))


if __name__ == "__main__":
    main()
