"""Rows of two texts, [CLS] A [SEP] B [SEP]: does B follow A, or are they in their order?

BERT's next sentence prediction (Devlin et al. 2019, section 3.1) and ALBERT's sentence order
prediction (Lan et al. 2020, section 3.1), after their create_pretraining_data.py. A row has one
piece of a document, which is parted where a sentence begins, all of its borders alike likely;
sentences are those of marks.py. [CLS] and [SEP] are the vocabulary's begin and end. Both tasks
part the row that other tasks, such as mlm, hide tokens of: write them first.

Both texts are whole sentences: the pieces of sentences with which a piece of a document begins and
ends are left out, for the model would tell from them what stood where. Deviations: officially a
document is parted sentence by sentence, and of two texts that are too long the longer one is cut;
here it makes as many rows as its pieces, and what a row leaves out is not seen in that epoch.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...batch import IGNORED, TargetSpec, ViewSpec
from ...rng import Keys
from .marks import LAST, MARKS, SENTENCE
from .pieces import Pieces
from .tasks import Asked, LaidRows
from .vocabulary import Vocabulary

I64 = npt.NDArray[np.int64]
SPECIAL = 3  # tokens that are put in a row
BITS = 24  # of a uniform number
BORDER, EVENT, SHORTENED, LESS = range(4)  # columns of the table


class Parted(NamedTuple):
    """How each row can be parted, (B,) each: whole sentences from `first` to before `last`.

    ok: there are two of them, or more; if not, they are the whole piece. border: where B begins.
    """

    first: Tensor
    border: Tensor
    last: Tensor
    ok: Tensor


class Sides(NamedTuple):
    """Where A and B lie, (B,) each, in the row of the piece followed by that of its partner."""

    a: Tensor
    a_size: Tensor
    b: Tensor
    b_size: Tensor


@dataclass(frozen=True, kw_only=True)
class SentencePairs:
    """What both tasks share. short: how often a row has any length from 2 tokens up.

    The table is (B, 4) of BITS each, by the key of the piece.
    """

    partners: ClassVar[int] = 0  # other documents that it needs
    short: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.short <= 1:
            raise ValueError(f"short = {self.short}; it lies between 0 and 1")

    def specs(
        self, view: ViewSpec, vocabulary: Vocabulary, *, around: bool
    ) -> tuple[ViewSpec, TargetSpec]:
        """Rows of the same length, and one of two classes for each.

        Raises:
            ValueError: documents have special tokens, or rows have no room.
        """
        if around:
            raise ValueError(
                "documents stand between special tokens, which the task puts there itself; set "
                "begin: false, end: false in Tokens"
            )
        if view.size("L") < SPECIAL + 2:
            raise ValueError(
                f"rows of {view.size('L')} tokens have no room for two texts and {SPECIAL} special "
                "tokens; set a larger length in Tokens"
            )
        return view, TargetSpec(view.group, 1, 2)

    def draw(
        self, pieces: Pieces, stream: str, seed: int, vocabulary: Vocabulary, length: int
    ) -> I64:
        """(B, 4) numbers of BITS; there is one piece a row."""
        keys = Keys(seed, pieces.epochs, pieces.ids, np.zeros(1, dtype=np.int64))
        table: I64 = (keys.uniforms(stream, 4)[0] * 2**BITS).astype(np.int64)
        return table

    def counts(self, table: I64, pieces: Pieces, length: int) -> I64:
        """How many numbers a row has: its class."""
        return np.ones(len(table), dtype=np.int64)

    def apply(self, rows: LaidRows, table: Tensor, vocabulary: Vocabulary) -> Asked:
        """Part rows, and lay both sides between special tokens."""
        sizes = self.shortened((rows.segments_2BL[0] >= 0).sum(1), table)
        parted = parted_rows(rows.marks_BL, sizes, table[:, BORDER])
        sides, classes = self.decided(rows, parted, table[:, EVENT] < 1 << BITS - 1)
        return Asked(laid_pairs(rows, sides, vocabulary), classes, None)

    def shortened(self, sizes: Tensor, table: Tensor) -> Tensor:
        """How many tokens of each piece are used, (B,)."""
        less = 2 + scaled(table[:, LESS], (sizes - 1).clamp_min(1))
        rare = table[:, SHORTENED] < self.short * 2**BITS
        return torch.where(rare, less.minimum(sizes), sizes)

    def decided(self, rows: LaidRows, parted: Parted, happens: Tensor) -> tuple[Sides, Tensor]:
        """Both sides, and the class of each row; IGNORED: it has none."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class SentenceOrder(SentencePairs):
    """ALBERT's: class 1, of half the rows, is of two runs of one document that changed places.

    A piece of one sentence is a row of one text, and not asked for; officially it gets a random
    partner of class 1, which makes order a matter of topic there.
    """

    def decided(self, rows: LaidRows, parted: Parted, happens: Tensor) -> tuple[Sides, Tensor]:
        """Swap the two texts of a row where it happens."""
        first, border, last, ok = parted
        swap, border = happens & ok, torch.where(ok, border, last)
        one, other = border - first, last - border
        sides = Sides(
            torch.where(swap, border, first), torch.where(swap, other, one),
            torch.where(swap, first, border), torch.where(swap, one, other),
        )  # fmt: skip
        return sides, torch.where(ok, swap.long(), IGNORED)


@dataclass(frozen=True, kw_only=True)
class NextSentence(SentencePairs):
    """BERT's: class 1, of half the rows and more, is of a B from another document.

    That one is the partner of the piece (stream/partners.py), from where one of its sentences
    begins, in the room of what it stands for: whole sentences if one fits, else cut. A piece of
    one sentence always has a partner, officially too, so half is the least; A is then the whole
    piece, half a row at most. Where the partner is bad, what follows is B, if anything does.
    """

    partners: ClassVar[int] = 1

    def decided(self, rows: LaidRows, parted: Parted, happens: Tensor) -> tuple[Sides, Tensor]:
        """Put another document there."""
        width, (first, border, last, ok) = rows.tokens_BL.shape[1], parted
        others = (rows.others_BL != 0).sum(1)
        a_size = torch.where(ok, border - first, last.clamp_max((width - SPECIAL + 1) // 2))
        other = (happens | ~ok) & (others > 0) & (last > 0)
        room = torch.where(ok, last - border, width - SPECIAL - a_size)
        there = whole_sentences(rows.others_BL, others.minimum(room))
        follows = torch.where(ok, last - border, 0)
        sides = Sides(
            first, a_size, torch.where(other, width, border), torch.where(other, there, follows)
        )
        return sides, torch.where(other | ok, other.long(), IGNORED)


def scaled(bits: Tensor, count: Tensor) -> Tensor:
    """Numbers of BITS as whole ones below `count`, all alike likely."""
    return bits * count >> BITS


def whole_sentences(marks_BL: Tensor, sizes: Tensor) -> Tensor:
    """How many of the first `sizes` tokens, (B,), are whole sentences; all, where no one is."""
    places_BL = torch.arange(marks_BL.shape[1], device=marks_BL.device).expand_as(marks_BL)
    ends_BL = (marks_BL & LAST != 0) & (places_BL < sizes[:, None])
    found = torch.where(ends_BL, places_BL + 1, 0).amax(1)
    return torch.where(found > 0, found, sizes)


def parted_rows(marks_BL: Tensor, sizes: Tensor, bits: Tensor) -> Parted:
    """Part each row where one of its whole sentences begins, but the first."""
    places_BL = torch.arange(marks_BL.shape[1], device=marks_BL.device).expand_as(marks_BL)
    starts_BL = (marks_BL & SENTENCE != 0) & (places_BL < sizes[:, None])
    first, last = starts_BL.long().argmax(1), whole_sentences(marks_BL, sizes)
    open_BL = starts_BL & (places_BL > first[:, None]) & (places_BL < last[:, None])
    count = open_BL.sum(1)
    chosen = scaled(bits, count)
    border = (open_BL & (open_BL.cumsum(1) == chosen[:, None] + 1)).long().argmax(1)
    ok = count > 0
    return Parted(torch.where(ok, first, 0), border, torch.where(ok, last, sizes), ok)


def laid_pairs(rows: LaidRows, sides: Sides, vocabulary: Vocabulary) -> LaidRows:
    """[CLS] A [SEP] B [SEP]; without B, [CLS] A [SEP]; without A too, padding.

    Segments are (3, B, L): all of one document, positions, and 1 where B and its end are, else 0.
    """
    tokens_BL, marks_BL = rows.tokens_BL, rows.marks_BL
    if len(rows.others_BL):
        tokens_BL = torch.cat([tokens_BL, rows.others_BL & ~MARKS], 1)
        marks_BL = torch.cat([marks_BL, rows.others_BL & MARKS], 1)
    width = rows.tokens_BL.shape[1]
    places_BL = torch.arange(width, device=tokens_BL.device).expand(len(tokens_BL), -1)
    a, a_size, b, b_size = (side[:, None] for side in sides)
    second_BL = places_BL >= a_size + 2
    ends = torch.where(b_size > 0, a_size + 2 + b_size, a_size + 1)  # places of the last [SEP]
    source_BL = torch.where(second_BL, b + places_BL - a_size - 2, a + places_BL - 1)
    source_BL = source_BL.clamp(0, tokens_BL.shape[1] - 1)
    there_BL = (places_BL <= ends) & (a_size > 0)
    is_end_BL = (places_BL == a_size + 1) | (places_BL == ends)
    text_BL = there_BL & ~is_end_BL & (places_BL > 0)
    laid_BL = torch.where(text_BL, tokens_BL.gather(1, source_BL), vocabulary.begin)
    laid_BL = torch.where(is_end_BL, vocabulary.end, laid_BL)
    laid_BL = torch.where(there_BL, laid_BL, vocabulary.pad)
    documents_BL = torch.where(there_BL, 0, -1)
    positions_BL, types_BL = (torch.where(there_BL, x, 0) for x in (places_BL, second_BL.long()))
    return LaidRows(
        laid_BL,
        torch.stack([documents_BL, positions_BL, types_BL]),
        torch.where(text_BL, marks_BL.gather(1, source_BL), 0),
    )
