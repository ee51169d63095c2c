"""The order `lanes` inside an epoch: places on the line of shards, permuted window by window."""

from typing import Any

import numpy as np
import numpy.typing as npt

from ..permutations import permutation, permutations

I64 = npt.NDArray[np.int64]
AT_ONCE = 1 << 15  # samples whose places in windows are drawn at once: 4 MB of words


def distinct_numbers(numbers: I64) -> I64:
    """The numbers that stand in an array, each once, ascending: (n,).

    `np.unique` looks for masked arrays, whose import takes 11 ms, and twice as long itself.
    """
    ascending = np.sort(numbers, axis=None)
    return ascending[first_of_runs(ascending)]


def first_of_runs(*values: npt.NDArray[Any]) -> I64:
    """Where a run of equal values begins, in a table of one column or several, (n,) each."""
    new = np.ones(len(values[0]), dtype=np.bool_)
    new[1:] = False
    for column in values:
        new[1:] |= column[1:] != column[:-1]
    return np.flatnonzero(new)


class Lanes:
    """L lanes of nearly equal length, permuted window by window."""

    def __init__(self, sizes: I64, *, seed: int, lanes: int, window: int) -> None:
        self.sizes, self.seed, self.lanes = sizes, seed, lanes
        self.samples = int(sizes.sum())
        mean = self.samples / len(sizes)
        self.window = max(1, round(window * mean))  # samples
        self.short, self.longer = divmod(self.samples, lanes)  # the first `longer` have one more
        self._permuted: tuple[tuple[int, int], npt.NDArray[np.int32], npt.NDArray[np.bool_]] | None
        self._permuted = None

    def shards(self, epoch: int) -> I64:
        """A permutation of the shards, the epoch's own."""
        return permutation(len(self.sizes), seed=self.seed, epoch=epoch, stream="order/shards")

    def __call__(self, epoch: int, q: I64) -> I64:
        """Slot q % L walks along its lane; the place inside the window is permuted."""
        offset, lane = np.divmod(q, self.lanes)
        window, inside = np.divmod(offset, self.window)
        for w in distinct_numbers(window):
            here = window == w
            inside[here] = self._table(epoch, int(w), lane[here])[lane[here], inside[here]]
        start = lane * self.short + np.minimum(lane, self.longer)
        place: I64 = start + window * self.window + inside
        return place

    def _table(self, epoch: int, window: int, lanes: I64) -> npt.NDArray[np.int32]:
        """(L, window) permutations of one window; rows are filled in when a lane is first met."""
        if self._permuted is None or self._permuted[0] != (epoch, window):
            size = min(self.window, self.short + 1 - window * self.window)
            self._permuted = None  # 40 MB at 1e9 samples: never two of them
            table = np.zeros((self.lanes, size), dtype=np.int32)
            self._permuted = (epoch, window), table, np.zeros(self.lanes, dtype=bool)
        _, table, filled = self._permuted
        new = distinct_numbers(lanes[~filled[lanes]])
        for some in (new[new < self.longer], new[new >= self.longer]):
            if len(some):
                size = min(self.window, self.length(int(some[0])) - window * self.window)
                self._fill(table, some, size, epoch, window)
        filled[new] = True
        return table

    def _fill(
        self, table: npt.NDArray[np.int32], lanes: I64, size: int, epoch: int, window: int
    ) -> None:
        """Permute the window of lanes that have `size` samples in it, many of them at once."""
        at_once = max(1, AT_ONCE // max(1, size))
        for start in range(0, len(lanes), at_once):
            some = lanes[start : start + at_once]
            table[some, :size] = permutations(
                size,
                seed=self.seed,
                epochs=np.array([epoch]),
                stream="order/window",
                item=some << 32 | window,
            )

    def length(self, lane: int) -> int:
        """How many samples a lane has."""
        return self.short + (lane < self.longer)
