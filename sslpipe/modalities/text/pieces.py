"""The pieces of documents that a share's rows are laid from, and where each of their steps lies."""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ...rng import Keys, Place, piece_ids

I64 = npt.NDArray[np.int64]


class Around(Protocol):
    """Which tokens stand around a document."""

    @property
    def length(self) -> int: ...
    @property
    def begin(self) -> bool: ...
    @property
    def end(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Pieces:
    """m pieces: of which documents, and where in the rows; steps are counted over all pieces.

    segments: (m, 4) of stream.source.SEGMENT. totals: (m,) steps of the whole documents.
    special: (m, 2) bool: whether the first and the last step are no text.
    """

    epochs: I64
    uids: I64
    segments: I64
    totals: I64
    special: npt.NDArray[np.bool_]
    rows: int

    @property
    def lengths(self) -> I64:
        """Steps of each piece, (m,)."""
        return self.segments[:, 3]

    @property
    def ids(self) -> I64:
        """What draws of a piece are keyed by, (m,): of (uid, start), the uid where start is 0."""
        return piece_ids(self.uids, self.segments[:, 2])

    def open_steps(self) -> npt.NDArray[np.bool_]:
        """The steps of each piece that are text, (m, longest); one step at least."""
        lengths = self.lengths  # 0 of a document without tokens
        open_mL = np.arange(max(1, int(lengths.max()))) < lengths[:, None]
        open_mL[:, 0] &= ~self.special[:, 0]
        open_mL[np.arange(len(lengths)), lengths - 1] &= ~self.special[:, 1]
        return open_mL

    def inside(self) -> I64:
        """The place of each step in its piece, (steps,)."""
        first = np.cumsum(self.lengths) - self.lengths
        return np.arange(int(self.lengths.sum())) - np.repeat(first, self.lengths)

    def places(self, length: int) -> I64:
        """The place of each step in the rows, which lie behind each other, (steps,)."""
        begins = self.segments[:, 0] * length + self.segments[:, 1]
        return np.repeat(begins, self.lengths) + self.inside()

    def keys(self, seed: int) -> Keys:
        """What each piece is drawn by: (seed, epoch, uid, start)."""
        return Keys(seed, self.epochs, self.ids, np.zeros(1, dtype=np.int64))

    def laid(self, steps_mL: npt.NDArray[Any], nothing: int, length: int) -> I64:
        """Values of the steps of pieces, (m, longest), in rows, (B, L); elsewhere `nothing`."""
        rows = np.full(self.rows * length, nothing, dtype=np.int64)
        rows[self.places(length)] = steps_mL[np.arange(steps_mL.shape[1]) < self.lengths[:, None]]
        return rows.reshape(self.rows, length)


def pieces_of(place: Place, totals: I64, *, epochs: I64, uids: I64, tokens: Around) -> Pieces:
    """The pieces of a share; documents that are no pieces are rows of their own, cut off."""
    segments = place.segments
    if not len(segments):
        rows, nothing = np.arange(len(uids)), np.zeros(len(uids), dtype=np.int64)
        segments = np.stack([rows, nothing, nothing, np.minimum(totals, tokens.length)], axis=1)
    starts, ends = segments[:, 2], segments[:, 2] + segments[:, 3]
    special = np.stack([(starts == 0) & tokens.begin, (ends == totals) & tokens.end], axis=1)
    return Pieces(epochs, uids, segments, totals, special, len(place.slots))


def whole_rows(pieces: Pieces, length: int) -> Pieces:
    """Rows of one piece each as pieces that fill them, without special steps; keys stay."""
    segments, nothing = pieces.segments.copy(), np.zeros_like(pieces.special)
    segments[:, 1], segments[:, 3] = 0, length
    return replace(pieces, segments=segments, special=nothing)
