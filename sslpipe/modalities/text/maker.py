"""DO for text: pieces of documents become rows, on the device."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...device.buffers import Buffers, Memory
from ...device.ragged import Ragged
from .. import Made, Raw, Tables
from .decider import TextDecider
from .marks import MARKS
from .tasks import LaidRows

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
NOTHING_LAID = torch.empty(0, 0, dtype=torch.int64)  # of rows whose tasks do not ask for it


class TextMaker:
    """Lays pieces in rows and does what tasks say."""

    def __init__(self, decider: TextDecider) -> None:
        self._decider = decider
        self._memory = Buffers()
        self.blank = Raw(np.zeros(0, dtype=np.int32), (0,))

    def make(self, arrays: Sequence[Tensor], tables: Tables, targets: Mapping[str, Tensor]) -> Made:
        """Rows (1, B, L) int64, their targets, lengths and segments."""
        segments = tables.extents[:, :4]
        own = len(segments)  # behind these pieces come their partners
        pieces = arrays if isinstance(arrays, Ragged) else Ragged.of(arrays)
        shape = int(segments[:, 0].max()) + 1, int(tables.extents[0, 5])
        runs = runs_of(segments, pieces.shapes_BD[:own, 0], shape)
        steps = steps_of(segments, runs, self._memory)
        device, group = pieces.flat_N.device, self._decider.group
        ids_BL = self._empty(shape, device)
        there_Bl = rows_there(segments, pieces.between(0, own))
        if there_Bl is None:
            places = places_of(pieces.between(0, own), runs, steps.empty)
            ids_BL.copy_(ids_at(pieces, places.reshape(shape)))
        else:
            ids_BL[:, : there_Bl.shape[1]] = there_Bl
        laid_2BL = torch.from_numpy(steps.laid.reshape(2, *shape)).to(device, non_blocking=True)
        filled = torch.from_numpy(steps.filled)[None].to(device, non_blocking=True)
        if len(steps.empty):
            empty = torch.from_numpy(steps.empty).to(device, non_blocking=True)
            ids_BL.view(-1).index_fill_(0, empty, self._decider.vocabulary.pad)
        partners = pieces.between(own, len(pieces))
        marked = self._decider.marked
        whole = LaidRows(
            ids_BL & ~MARKS if marked else ids_BL,
            laid_2BL,
            ids_BL & MARKS if marked else NOTHING_LAID,
            padded_rows(partners, shape[1], 0) if self._decider.partners else NOTHING_LAID,
        )
        return self._asked(Made({}, {}, {group: filled}, {}), whole, targets)

    def _empty(self, shape: tuple[int, int], device: torch.device) -> Tensor:
        """Memory for rows, int64: torch keeps that of a device, that of the host is kept here."""
        if device.type != "cpu":
            return torch.empty(shape, dtype=torch.int64, device=device)
        return torch.from_numpy(self._memory.empty(shape, np.int64))

    def _asked(self, made: Made, rows: LaidRows, targets: Mapping[str, Tensor]) -> Made:
        """Do the tasks, each on what the one before left."""
        for name, task in self._decider.tasks.items():
            asked = task.task.apply(rows, targets[name][0], self._decider.vocabulary)
            rows, made.targets[name] = asked.rows, asked.targets_BL[None]
            if asked.segments_2BL is not None:
                made.segments[name] = asked.segments_2BL
            if asked.segments_2BL is not None or task.task is self._decider.pairs:
                made.lengths[self._decider.group] = (rows.segments_2BL[0] >= 0).sum(1)[None]
        made.views[self._decider.group] = rows.tokens_BL[None]
        made.segments[self._decider.group] = rows.segments_2BL
        return made


def padded_rows(pieces: Ragged, length: int, value: int) -> Tensor:
    """A row for each piece, `value` behind it: (B, L) int64."""
    device, found = pieces.flat_N.device, pieces.shapes_BD[:, 0]
    there_BL = np.arange(length) < found[:, None]
    begins = pieces.offsets_B // pieces.dtype.itemsize
    rows = ids_at(pieces, np.where(there_BL, begins[:, None] + np.arange(length), 0)).long()
    return torch.where(torch.from_numpy(there_BL).to(device, non_blocking=True), rows, value)


def ids_at(pieces: Ragged, places: I32 | I64) -> Tensor:
    """The ids at places of the buffer, int32; 0 where all pieces are bad and there is none."""
    if not pieces.shapes_BD.any():
        return torch.zeros(places.shape, dtype=torch.int32, device=pieces.flat_N.device)
    return pieces.elements(places)


def rows_there(segments: I64, pieces: Ragged) -> Tensor | None:
    """Rows as they lie in the buffer, (B, l), where l is the longest; None: pieces lie otherwise.

    Stored ids are read to where they stand in rows (stream/stored.py), and nothing is gathered.
    """
    width, length = pieces.dtype.itemsize, int((segments[:, 1] + segments[:, 3]).max())
    size = (int(segments[:, 0].max()) + 1) * length
    places = segments[:, 0] * length + segments[:, 1]
    if len(pieces.flat_N) < width * size or (pieces.offsets_B != width * places).any():
        return None
    return pieces.flat_N[: width * size].view(pieces.dtype).view(-1, length)


class Runs(NamedTuple):
    """Rows behind each other as runs: what is empty before a piece, the piece, and so on.

    edges: (2 m + 2,) where each run begins, and where the last one ends. counts: (2 m + 1,) steps.
    """

    edges: I64
    counts: I64


def runs_of(segments: I64, sizes: I64, shape: tuple[int, int]) -> Runs:
    """The runs of rows; of a piece that is bad nothing came, and its place stays empty."""
    starts = segments[:, 0] * shape[1] + segments[:, 1]
    edges = np.zeros(2 * len(segments) + 2, dtype=np.int64)
    edges[1:-1:2], edges[2:-1:2], edges[-1] = starts, starts + sizes, shape[0] * shape[1]
    return Runs(edges, np.diff(edges))


class Steps(NamedTuple):
    """What lies at the steps of all rows, which stand behind each other: N = B L.

    laid: (2, N) number of the document in its row and position in it; -1 and 0 at the `empty`
    steps, (e,). filled: (B,) steps of rows.
    """

    laid: I64
    empty: I64
    filled: I64


def steps_of(segments: I64, runs: Runs, memory: Memory) -> Steps:
    """Lay out pieces.

    Repeating numbers of runs takes a tenth of the time that putting those of steps in their places
    does, and all of them are repeated in one call; in half the memory, fresh pages of which cost
    most.
    """
    rows, steps, gaps = segments[:, 0], int(runs.edges[-1]), runs.counts[::2]
    of_runs = np.full((2, len(runs.counts)), -1, dtype=np.int32)  # a buffer has fewer elements
    of_runs[0, 1::2] = np.arange(len(rows)) - np.searchsorted(rows, rows)  # its number in its row
    of_runs[1, 1::2] = -runs.edges[1:-1:2]
    documents, positions = np.repeat(of_runs, runs.counts, axis=1)
    positions += numbers(steps)
    laid = memory.empty((2, steps), np.int64)
    laid[0], laid[1] = documents, positions
    behind = runs.edges[:-1:2] - (np.cumsum(gaps) - gaps)
    empty = np.repeat(behind, gaps) + np.arange(int(gaps.sum()))
    laid[1][empty] = 0
    filled = np.bincount(rows, weights=runs.counts[1::2])
    return Steps(laid, empty, filled.astype(np.int64))


def places_of(pieces: Ragged, runs: Runs, empty: I64) -> I32:
    """Where the ids of steps lie in the buffer, in elements, (N,); 0 of `empty` ones."""
    of_runs = np.zeros(len(runs.counts), dtype=np.int32)
    of_runs[1::2] = pieces.offsets_B // pieces.dtype.itemsize - runs.edges[1:-1:2]
    places = np.repeat(of_runs, runs.counts)
    places += numbers(len(places))
    places[empty] = 0
    return places


@lru_cache(maxsize=8)
def numbers(count: int) -> npt.NDArray[np.int32]:
    """The numbers below a count, for reading; batches have few sizes."""
    return np.arange(count, dtype=np.int32)
