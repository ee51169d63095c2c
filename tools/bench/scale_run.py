"""What a run of 512 GPUs over 10^9 images downloads, by arithmetic; pipelines/SCALE.md shows it.

`shards_of_node` is compared with streams that run, by nodes.py.
"""

from dataclasses import dataclass

import numpy as np

from sslpipe.stream.mixture import Mixture
from sslpipe.stream.order import slots
from sslpipe.stream.rank_split import RankSplit

MIXED = (6, 3, 1)  # parts of the samples, and of every batch, that are of each of three sets


@dataclass(frozen=True)
class Run:
    """A run of 512 GPUs over 10^9 images of 100 kB; what else is said follows from it."""

    samples: int = 10**9
    sample_bytes: int = 100_000
    shard: int = 10_000  # samples
    nodes: int = 64
    ranks_a_node: int = 8
    batch: int = 16_384
    lanes: int = 512
    window: int = 4  # shards
    gbit: float = 25.0  # of a node's network

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_a_node

    @property
    def shards(self) -> int:
        return -(-self.samples // self.shard)

    @property
    def shard_bytes(self) -> int:
        return self.shard * self.sample_bytes

    @property
    def window_shards(self) -> int:
        """Shards of a lane that are needed at a time: a window begins anywhere in a shard."""
        return self.window + 1

    def lanes_of(self, node: int, lanes: int) -> int:
        """How many lanes a node walks, with so many in all."""
        first = node * self.ranks_a_node
        mine = [
            slots(batch_size=self.batch, lanes=lanes, rank=rank, world_size=self.ranks)
            for rank in range(first, first + self.ranks_a_node)
        ]
        return len(np.unique(np.concatenate(mine) % lanes))


RUN = Run()


def shards_of_node(order: str, samples: int, shard: int, nodes: int, batch: int) -> float:
    """Shards that one of `nodes` downloads in an epoch with room for them all, on average.

    lanes: one run of samples on the line of shards, if the nodes divide the lanes. sequential: one
    run of each batch. global: any; a shard is missed if none of its samples is the node's.
    """
    mine, shards = samples / nodes, samples / shard
    if order == "lanes":
        return min(shards, 1 + (mine - 1) / shard)
    if order == "sequential":
        return min(shards, samples / batch * (1 + (batch / nodes - 1) / shard))
    return shards * (1 - (1 - 1 / nodes) ** shard)


def in_lanes(run: Run, lanes: int) -> float:
    """Shards that the busiest node downloads in an epoch, its lanes being one run of them."""
    return 1 + (max(run.lanes_of(node, lanes) for node in range(run.nodes)) / lanes) * run.shards


def split_of(run: Run, rank: int, lanes: int) -> RankSplit:
    """What a rank has of the run, were its samples those of three sets in so many lanes each."""
    plan = Mixture(MIXED, batch_size=run.batch, seed=0, epoch_samples=run.samples)
    samples = run.samples * np.array(MIXED) // sum(MIXED)
    return RankSplit(
        plan, samples=samples, lanes=np.full(len(MIXED), lanes), rank=rank, world_size=run.ranks
    )


def in_mixture(run: Run, lanes: int) -> float:
    """Shards that the busiest of four nodes downloads in an epoch: all of each lane it walks."""
    most = 0.0
    for node in np.linspace(0, run.nodes - 1, 4, dtype=int).tolist():
        walked = set[tuple[int, int]]()
        for rank in range(node * run.ranks_a_node, (node + 1) * run.ranks_a_node):
            picks = split_of(run, rank, lanes).picks(range(64))
            columns = picks.corpora.tolist(), (picks.positions % lanes).tolist()
            walked.update(zip(*columns, strict=True))
        parts = [MIXED[corpus] / sum(MIXED) / lanes for corpus, _ in walked]
        most = max(most, sum(1 + part * run.shards for part in parts))
    return most
