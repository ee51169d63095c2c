"""Row r of a stream of rows, each packed from documents: a function of (manifest, seed, recipe).

Documents come in the order of their corpus. Every `window` of them, counted within an epoch, is
packed by itself (packing.py) and its rows are permuted. How many rows a window has is known when
it is packed, so row r is found by counting on from a window whose first row is known: from 0, or
from the anchor of a state. So nothing of an epoch is planned before its first row, and a state is
the step and an anchor of two numbers.

With `bucket`, rows of similar length stand together, as many as a batch has: the rows of a window
are sorted by length and cut where batches end, and these groups are permuted.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..permutations import permutation
from .by_length import groups_by_length
from .packing import Segments

I64 = npt.NDArray[np.int64]
# how the documents at some positions of a corpus's stream are laid in rows (packing.py)
Pack = Callable[[I64], Segments]
KEPT = 8  # windows that are remembered: those of a batch and of the coming ones


class RowSegments(NamedTuple):
    """The segments of some rows, (m,) each, in their order."""

    positions: I64  # of the document in the corpus's stream
    starts: I64  # of the piece in its document
    lengths: I64
    rows: I64  # which of the rows that were asked for
    columns: I64  # where in the row it begins


class Anchor(NamedTuple):
    """A window, counted over all epochs, and the number of its first row."""

    window: int
    row: int


class Rows:
    """`at(rows)` gives segments. One thread at a time.

    documents: of an epoch. pack: asked for the positions of a window, in one call. bucket: rows of
    a batch, which are of similar length; None: rows stand in any order.
    """

    def __init__(
        self,
        documents: int,
        pack: Pack,
        *,
        window: int,
        seed: int,
        bucket: int | None = None,
    ) -> None:
        self._documents, self._pack = documents, pack
        self._window, self._seed, self._bucket = window, seed, bucket
        self._per_epoch = -(-documents // window)  # windows
        self._packed: OrderedDict[int, Segments] = OrderedDict()
        self._sorted: OrderedDict[int, Segments] = OrderedDict()  # in groups, with `bucket`
        self._start(Anchor(0, 0))

    def _start(self, anchor: Anchor) -> None:
        self._first_window, self._firsts = anchor.window, [anchor.row]  # rows, window by window

    def resume(self, anchor: Anchor) -> None:
        """Count on from a window whose first row is known; earlier rows count from 0 again."""
        self._start(anchor)

    def anchor(self, row: int) -> Anchor:
        """The window that holds a row."""
        window = self._window_of(row)
        return Anchor(window, self._firsts[window - self._first_window])

    def at(self, rows: Sequence[int] | I64) -> RowSegments:
        """The segments of rows, which may lie anywhere in the stream."""
        asked, place, found = np.asarray(rows, dtype=np.int64), 0, []
        while place < len(asked):  # those that follow in the same window are found at once
            window = self._window_of(int(asked[place]))
            first = self._firsts[window - self._first_window]
            packed = self._in_groups(window, first) if self._bucket else self.window(window)
            inside = asked[place:] - first
            others = np.flatnonzero((inside < 0) | (inside >= packed.row_count))
            inside = inside[: others[0]] if len(others) else inside
            found.append(self._segments(packed, window, inside, place))
            place += len(inside)
        return RowSegments(*(np.concatenate(column) for column in zip(*found, strict=True)))

    def _segments(self, packed: Segments, window: int, inside: I64, place: int) -> RowSegments:
        """The segments of some rows of a window, the first of which stands in `place`."""
        begins, ends = np.searchsorted(packed.rows, [inside, inside + 1])
        counts = ends - begins
        rows = np.repeat(np.arange(len(inside)), counts)
        at = begins[rows] + np.arange(len(rows)) - (np.cumsum(counts) - counts)[rows]
        documents, starts, lengths, _, columns = (column[at] for column in packed)
        first, _ = self._span(window)
        return RowSegments(first + documents, starts, lengths, place + rows, columns)

    def _window_of(self, row: int) -> int:
        if row < self._firsts[0]:
            self._start(Anchor(0, 0))
        while self._firsts[-1] <= row:
            window = self._first_window + len(self._firsts) - 1
            self._firsts.append(self._firsts[-1] + self.window(window).row_count)
        return self._first_window + bisect_right(self._firsts, row) - 1

    def epoch_rows(self, epoch: int) -> int:
        """How many rows an epoch has; all its windows are packed."""
        windows = range(epoch * self._per_epoch, (epoch + 1) * self._per_epoch)
        return sum(self.window(window).row_count for window in windows)

    def window(self, window: int) -> Segments:
        """The rows of a window, counted over all epochs, permuted."""
        found = self._packed.get(window)
        if found is None:
            first, last = self._span(window)
            packed = self._pack(np.arange(first, last))
            found = self._packed[window] = permuted(packed, seed=self._seed, window=window)
            if len(self._packed) > KEPT:
                self._packed.popitem(last=False)
        return found

    def _in_groups(self, window: int, first: int) -> Segments:
        """The rows of a window in groups of similar length; `first` is the number of its first."""
        found = self._sorted.get(window)
        if found is None:
            assert self._bucket
            found = grouped(
                self.window(window), seed=self._seed, window=window, first=first, size=self._bucket
            )
            self._sorted[window] = found
            if len(self._sorted) > KEPT:
                self._sorted.popitem(last=False)
        return found

    def _span(self, window: int) -> tuple[int, int]:
        """The first position of a window, and that behind its last."""
        epoch, inside = divmod(window, self._per_epoch)
        ends = min((inside + 1) * self._window, self._documents)
        return epoch * self._documents + inside * self._window, epoch * self._documents + ends


def permuted(packed: Segments, *, seed: int, window: int) -> Segments:
    """Shuffle the rows of a window: packers leave the long ones in front."""
    order = permutation(packed.row_count, seed=seed, epoch=window, stream="rows/window")
    return ordered(packed, order)


def grouped(packed: Segments, *, seed: int, window: int, first: int, size: int) -> Segments:
    """Sort the rows of a window by length, cut them into batches of `size`, and shuffle these.

    first: the number of the first row; see `groups_by_length`.
    """
    lengths = np.bincount(packed.rows, weights=packed.lengths, minlength=packed.row_count)
    order = groups_by_length(
        lengths, size=size, first=first, seed=seed, window=window, stream="rows/groups"
    )
    return ordered(packed, order)


def ordered(packed: Segments, order: I64) -> Segments:
    """The rows of a window in another order: row `order[i]` becomes row i."""
    rank = np.empty_like(order)
    rank[order] = np.arange(packed.row_count)
    rows = rank[packed.rows]
    by_row = np.lexsort((packed.columns, rows))
    found = Segments(packed.documents, packed.starts, packed.lengths, rows, packed.columns)
    return Segments(*(column[by_row] for column in found))
