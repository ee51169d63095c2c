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
        steps = steps_of(segments, pieces.between(0, own), shape, self._memory)
        device, group = pieces.flat_N.device, self._decider.group
        ids_BL = self._empty(shape, device).copy_(ids_at(pieces, steps.places.reshape(shape)))
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


class Steps(NamedTuple):
    """What lies at the steps of all rows, which stand behind each other: N = B L.

    places: (N,) in the buffer of the pieces, in elements. laid: (2, N) number of the document in
    its row and position in it; -1 and 0 at the `empty` steps, (e,). filled: (B,) steps of rows.
    """

    places: I32
    laid: I64
    empty: I64
    filled: I64


def steps_of(segments: I64, pieces: Ragged, shape: tuple[int, int], memory: Memory) -> Steps:
    """Lay out pieces; of one that is bad nothing came, and its place stays empty.

    Rows are runs: what is empty before a piece, the piece, and so on. Repeating numbers of runs
    takes a tenth of the time that putting those of steps in their places does, and all of them are
    repeated in one call; in half the memory, fresh pages of which cost most.
    """
    rows, steps, count = segments[:, 0], shape[0] * shape[1], len(segments)
    sizes = pieces.shapes_BD[:, 0]
    starts = rows * shape[1] + segments[:, 1]
    edges = np.zeros(2 * count + 2, dtype=np.int64)
    edges[1:-1:2], edges[2:-1:2], edges[-1] = starts, starts + sizes, steps
    of_runs = np.full((3, 2 * count + 1), -1, dtype=np.int32)  # a buffer has fewer elements
    of_runs[0, 1::2] = np.arange(count) - np.searchsorted(rows, rows)  # its number in its row
    of_runs[1, 1::2] = -starts
    of_runs[2, 1::2] = pieces.offsets_B // pieces.dtype.itemsize - starts
    documents, to_position, to_place = np.repeat(of_runs, np.diff(edges), axis=1)
    here, empty = numbers(steps), np.flatnonzero(documents < 0)
    laid = memory.empty((2, steps), np.int64)
    laid[0] = documents
    np.add(here, to_position, out=laid[1])
    places = np.add(here, to_place, out=to_place)
    laid[1][empty] = places[empty] = 0
    return Steps(places, laid, empty, np.bincount(rows, weights=sizes).astype(np.int64))


@lru_cache(maxsize=8)
def numbers(count: int) -> npt.NDArray[np.int32]:
    """The numbers below a count, for reading; batches have few sizes."""
    return np.arange(count, dtype=np.int32)
