"""Tasks on rows of tokens: what each does to a row, and what it asks for.

A task draws a table on the host, from the pieces alone, and applies it on the device, where the
tokens are. Those that hide tokens, each piece by its own key, are in `masked.py` and `spans.py`;
those that make other rows in `corruption.py`, `denoisers.py` and `pairs.py`.
"""

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...batch import IGNORED, TargetSpec, ViewSpec
from .pieces import Pieces
from .vocabulary import Vocabulary

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
NOTHING, KEEP = -1, -2  # a step that is not asked for; one that is, and stays as it is


class LaidRows(NamedTuple):
    """Rows on the device. tokens_BL: ids; segments_2BL: document (-1: padding), position in it.

    marks_BL: the bits of marks.py, and others_BL: the beginnings of partners, 0 behind them; both
    empty unless a task asks for them.
    """

    tokens_BL: Tensor
    segments_2BL: Tensor
    marks_BL: Tensor = torch.empty(0, 0, dtype=torch.int64)
    others_BL: Tensor = torch.empty(0, 0, dtype=torch.int64)


class Asked(NamedTuple):
    """What a task leaves and asks for.

    targets_BL: ids, IGNORED elsewhere. segments_2BL: of targets that are rows of their own; None:
    they stand where the tokens stand.
    """

    rows: LaidRows
    targets_BL: Tensor
    segments_2BL: Tensor | None


class TokenTask(Protocol):
    """Decides a task for pieces, and does it."""

    def specs(
        self, view: ViewSpec, vocabulary: Vocabulary, *, around: bool
    ) -> tuple[ViewSpec, TargetSpec]:
        """The rows that it leaves, and its targets. around: special tokens stand in the rows.

        Raises:
            ValueError: it cannot work on such rows.
        """
        ...

    def draw(
        self, pieces: Pieces, stream: str, seed: int, vocabulary: Vocabulary, length: int
    ) -> I64:
        """The table of all rows of `length` steps, (B, anything)."""
        ...

    def counts(self, table: I64, pieces: Pieces, length: int) -> I64:
        """How many tokens of each row are asked for at most, (B,)."""
        ...

    def apply(self, rows: LaidRows, table: Tensor, vocabulary: Vocabulary) -> Asked:
        """Do what the table says."""
        ...


class HidingTask:
    """A task that hides some tokens of each piece and asks for them.

    Its table is (B, L), of one for each piece: NOTHING, KEEP, or the id to put there; tasks that
    choose on the device keep there what they choose by.
    """

    def specs(
        self, view: ViewSpec, vocabulary: Vocabulary, *, around: bool
    ) -> tuple[ViewSpec, TargetSpec]:
        """Rows as they were, and a target for each token."""
        return view, TargetSpec(view.group, 1, view.vocabulary, view.shape)

    def counts(self, table: I64, pieces: Pieces, length: int) -> I64:
        """How many tokens of each row are hidden or kept, (B,)."""
        counts: I64 = (table != NOTHING).sum(1)
        return counts

    def apply(self, rows: LaidRows, table: Tensor, vocabulary: Vocabulary) -> Asked:
        """Put ids where the table says; a bad document is not asked for."""
        tokens_BL = rows.tokens_BL
        asked = (table != NOTHING) & (rows.segments_2BL[0] >= 0)
        put = torch.where(asked & (table != KEEP), table, tokens_BL)
        return Asked(rows._replace(tokens_BL=put), torch.where(asked, tokens_BL, IGNORED), None)


def replacements(mask: float, random: float, what: F64, which: F64, vocabulary: Vocabulary) -> I64:
    """The mask, a random token of text, or KEEP, by two uniform numbers and the shares of both."""
    drawn = random_tokens(which, vocabulary)
    return np.where(what < mask, vocabulary.mask, np.where(what < mask + random, drawn, KEEP))


def random_tokens(which: F64, vocabulary: Vocabulary) -> I64:
    """Tokens by uniform numbers, of the same shape; never special, unknown, or a sentinel."""
    pieces = vocabulary.pieces
    found: I64 = pieces[np.floor(which * len(pieces)).astype(np.int64)]
    return found


def check_shares(share: float, mask: float, random: float) -> None:
    """Check how much is hidden, and by what.

    Raises:
        ValueError: a share is none.
    """
    if not 0 < share < 1:
        raise ValueError(f"share = {share}; it lies between 0 and 1")
    if mask < 0 or random < 0 or mask + random > 1:
        raise ValueError(
            f"mask = {mask} and random = {random} are shares of the hidden tokens; "
            "neither is below 0 nor their sum above 1"
        )
