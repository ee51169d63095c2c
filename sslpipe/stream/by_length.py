"""Batches of samples of similar lengths: a plan that is as exact and elastic as the one it sorts.

The positions of an epoch are cut into windows; each is sorted by length, cut where batches end, and
these groups are permuted by a key. So the sample at a position is a function of (manifest, seed,
recipe), a batch is padded to the smallest length that holds its samples, on all ranks alike, and a
state stays a step. fairseq sorts a whole epoch by length with ties at random (`ordered_indices`).
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..permutations import permutation
from .lanes import distinct_numbers
from .packed import Corpus, Packed
from .plan import Picks, RankSlots, Single, picked

I64 = npt.NDArray[np.int64]
KEPT = 8  # windows that are remembered


@dataclass(frozen=True, slots=True)
class LengthBuckets:
    """How long samples are, and how long batches of them may be.

    steps: of samples by their extents in the index, (n, 4) -> (n,). lengths: ascending; a batch has
    the smallest that holds its samples, the last one holds all.
    """

    steps: Callable[[npt.NDArray[np.uint32]], I64]
    lengths: tuple[int, ...]


def groups_by_length(
    lengths: I64, *, size: int, first: int, seed: int, window: int, stream: str
) -> I64:
    """An order of some samples in which batches of `size` have similar lengths: places, (n,).

    first: the number of the first sample, which may lie inside a batch: that batch, and the last
    one, are shared with the windows around and get the shortest, so both have similar ones.
    Samples of one length stay in the order that they had.
    """
    count = len(lengths)
    by_length = np.argsort(lengths, kind="stable")
    before = min(-first % size, count)
    groups, behind = divmod(count - before, size)
    whole = by_length[before + behind :].reshape(groups, size)
    if groups:
        whole = whole[permutation(groups, seed=seed, epoch=window, stream=stream)]
    parts = [by_length[:before], whole.ravel(), by_length[before : before + behind]]
    return np.concatenate(parts)


class ByLength:
    """The plan of a corpus, whose samples change places within windows. Safe in threads."""

    def __init__(self, plan: Single, steps: Callable[[I64], I64], *, window: int, seed: int):
        """steps: of the samples at some positions of the corpus's stream."""
        self._plan, self._steps, self._seed = plan, steps, seed
        self.size, self._window = plan.size, min(window, plan.samples)
        self._per_epoch = -(-plan.samples // self._window)
        self._known: OrderedDict[int, I64] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self._plan)

    def __call__(self, step: int, slots: I64) -> Picks:
        """The samples in some slots of a batch."""
        picks = self._plan(step, slots)
        epochs, inside = np.divmod(picks.positions, self._plan.samples)
        windows = epochs * self._per_epoch + inside // self._window
        found = np.empty_like(picks.positions)
        for window in distinct_numbers(windows).tolist():
            here = windows == window
            first, order = self._ordered(window)
            found[here] = first + order[picks.positions[here] - first]
        return picked(found, picks.valid)

    def _ordered(self, window: int) -> tuple[int, I64]:
        """The first position of a window, counted over all epochs, and the order of its places."""
        epoch, number = divmod(window, self._per_epoch)
        inside = number * self._window
        first = epoch * self._plan.samples + inside
        with self._lock:
            order = self._known.get(window)
            if order is None:
                last = min(inside + self._window, self._plan.samples) - inside + first
                # batches follow each other through epochs, but where each begins with one
                at = first if self._plan.remainder == "wrap" else inside
                order = self._known[window] = groups_by_length(
                    self._steps(np.arange(first, last)), size=self.size, first=at,
                    seed=self._seed, window=window, stream="bucket/groups",
                )  # fmt: skip
                if len(self._known) > KEPT:
                    self._known.popitem(last=False)
        return first, order


class PackedByLength(Packed):
    """A corpus in batches of similar lengths."""

    def __init__(
        self,
        corpus: Corpus,
        plan: Single,
        buckets: LengthBuckets,
        slots: RankSlots,
        *,
        window: int,
        seed: int,
    ) -> None:
        def steps(positions: I64) -> I64:
            located = corpus.locate(positions)
            samples = corpus.records.at(located.shards, located.rows).samples
            return buckets.steps(samples["extent"])

        self._steps, self._lengths = steps, np.array(buckets.lengths)
        sorted_plan = ByLength(plan, steps, window=window, seed=seed)
        super().__init__([corpus], sorted_plan, slots, identity=corpus.identity)

    def row_length(self, step: int) -> int:
        """The smallest bucket that holds all samples of a global batch; the same on every rank."""
        longest = self._steps(self.plan(step, np.arange(self.plan.size)).positions).max()
        place = np.searchsorted(self._lengths, longest).clip(max=len(self._lengths) - 1)
        return int(self._lengths[place])
