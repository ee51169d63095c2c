"""DO for text: pieces of documents become rows, on the device."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...device.ragged import Ragged
from .. import Made, Raw, Tables
from .decider import TextDecider
from .marks import MARKS
from .tasks import LaidRows

I64 = npt.NDArray[np.int64]
NOTHING_LAID = torch.empty(0, 0, dtype=torch.int64)  # of rows whose tasks do not ask for it


class TextMaker:
    """Lays pieces in rows and does what tasks say."""

    def __init__(self, decider: TextDecider) -> None:
        self._decider = decider
        self.blank = Raw(np.zeros(0, dtype=np.int32), (0,))

    def make(self, arrays: Sequence[Tensor], tables: Tables, targets: Mapping[str, Tensor]) -> Made:
        """Rows (1, B, L) int64, their targets, lengths and segments."""
        segments = tables.extents[:, :4]
        own = len(segments)  # behind these pieces come their partners
        pieces = arrays if isinstance(arrays, Ragged) else Ragged.of(arrays)
        found = pieces.shapes_BD[:own, 0]
        rows, length = int(segments[:, 0].max()) + 1, int(tables.extents[0, 5])
        device = pieces.flat_N.device
        steps = steps_of(segments, found, length)
        places = torch.from_numpy(steps.places).to(device, non_blocking=True)
        flat_N = flat(rows * length, self._decider.vocabulary.pad, device)
        flat_N[places] = pieces.between(0, own).joined().long()
        documents, positions = flat(rows * length, -1, device), flat(rows * length, 0, device)
        documents[places] = torch.from_numpy(steps.documents).to(device, non_blocking=True)
        positions[places] = torch.from_numpy(steps.positions).to(device, non_blocking=True)
        group = self._decider.group
        filled = torch.from_numpy(steps.filled(rows)).to(device, non_blocking=True)
        laid = torch.stack([documents, positions]).view(2, rows, length)
        made = Made({}, {}, {group: filled[None]}, {})
        tokens_BL = flat_N.view(rows, length)
        partners = pieces.between(own, len(pieces))
        whole = LaidRows(
            tokens_BL & ~MARKS,
            laid,
            tokens_BL & MARKS if self._decider.marked else NOTHING_LAID,
            padded_rows(partners, length, 0) if self._decider.partners else NOTHING_LAID,
        )
        return self._asked(made, whole, targets)

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


def flat(steps: int, value: int, device: torch.device) -> Tensor:
    """So many steps of one value, int64."""
    return torch.full((steps,), value, dtype=torch.int64, device=device)


def padded_rows(pieces: Ragged, length: int, value: int) -> Tensor:
    """A row for each piece, `value` behind it: (B, L) int64."""
    device, found = pieces.flat_N.device, pieces.shapes_BD[:, 0]
    rows = flat(len(pieces) * length, value, device)
    places = np.flatnonzero(np.arange(length) < found[:, None])
    rows[torch.from_numpy(places).to(device, non_blocking=True)] = pieces.joined().long()
    return rows.view(len(pieces), length)


class Steps:
    """Where each step of all pieces lies, and of which document in its row it is."""

    def __init__(self, places: I64, documents: I64, positions: I64, rows: I64) -> None:
        self.places, self.documents, self.positions, self._rows = places, documents, positions, rows

    def filled(self, rows: int) -> I64:
        """How many steps each row has, (B,)."""
        return np.bincount(self._rows, minlength=rows).astype(np.int64)


def steps_of(segments: I64, found: I64, length: int) -> Steps:
    """Lay out pieces of which `found` steps came: 0 of one that is bad, whose place stays empty."""
    row, column = segments[:, 0], segments[:, 1]
    first = np.cumsum(found) - found
    inside = np.arange(int(found.sum())) - np.repeat(first, found)
    new = np.r_[True, row[1:] != row[:-1]]
    begins = np.flatnonzero(new)  # the first piece of each row
    documents = np.arange(len(row)) - np.repeat(begins, np.diff(np.r_[begins, len(row)]))
    rows = np.repeat(row, found)
    return Steps(
        rows * length + np.repeat(column, found) + inside, np.repeat(documents, found), inside, rows
    )
