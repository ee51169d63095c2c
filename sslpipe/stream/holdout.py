"""Which samples `stream.holdout` lets through: a function of the uid alone.

A document is held out whole, before any row is packed: parts of rows would put pieces of one
document on both sides. Copies of a sample under another key are other samples; `--dedupe exact`
leaves them out when a set is packed.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..errors import ShardError
from ..recipe.schema import HoldoutSection
from ..rng import words64
from ..shards.read.store import ShardStore


def held_out(uids: npt.NDArray[np.int64], fraction: float) -> npt.NDArray[np.bool_]:
    """Which samples belong to the share that is kept apart, (n,) bool; each has its own draw."""
    below = np.uint64(int(fraction * 2**64))
    chosen: npt.NDArray[np.bool_] = words64(uids, seed=0, stream="stream/holdout") < below
    return chosen


def lets_through(holdout: HoldoutSection, uids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which samples are of the part that comes, (n,) bool."""
    kept_apart = held_out(uids, holdout.fraction)
    return kept_apart if holdout.part == "held_out" else ~kept_apart


def beside(
    holdout: HoldoutSection, store: ShardStore, excluded: Sequence[Sequence[int]]
) -> list[Sequence[int]]:
    """The rows of every shard that do not come: those that are `excluded` and the other part.

    Reads all indexes, once, as the size of a shard is how many of its samples come.

    Raises:
        ShardError: an index is missing or damaged, or nothing is left.
    """
    left: list[Sequence[int]] = []
    kept = 0
    for number, rows in enumerate(excluded):
        comes = lets_through(holdout, store.index(number).samples["uid"])
        comes[np.array(rows, dtype=np.int64)] = False
        left.append(np.flatnonzero(~comes).tolist())
        kept += int(comes.sum())
    if not kept:
        raise ShardError(
            f"{store.place}: stream.holdout.part = {holdout.part!r} of a fraction of "
            f"{holdout.fraction} has no sample; change the fraction"
        )
    return left
