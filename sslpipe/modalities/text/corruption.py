"""T5's span corruption: spans are cut out of a row, and are what is to be written.

Raffel et al. 2020, arXiv:1910.10683, section 3.1.4, and t5/data/preprocessors.py. The sizes of rows
are known beforehand: how much is cut out of n tokens, and in how many spans, depends on n alone.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...batch import IGNORED, TargetSpec, ViewSpec
from ...rng import Keys
from .pieces import Pieces
from .tasks import KEEP, NOTHING, Asked, LaidRows
from .vocabulary import Vocabulary

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


class Sizes(NamedTuple):
    """What becomes of rows of n tokens, (B,) each: tokens cut out, in how many spans."""

    tokens: I64
    cut: I64
    spans: I64

    @property
    def left(self) -> I64:
        """Tokens of what is read: what stays, a sentinel a span, and the end."""
        return self.tokens - self.cut + self.sentinels + 1

    @property
    def written(self) -> I64:
        """Tokens of what is to be written: what was cut out, a sentinel a span, and the end."""
        return self.cut + self.sentinels + 1

    @property
    def sentinels(self) -> I64:
        """Of a row of one token nothing is cut out."""
        return np.where(self.cut > 0, self.spans, 0)


@dataclass(frozen=True, kw_only=True)
class SpanCorruption:
    """Rows become shorter by the spans that are cut out; targets are those, each behind a sentinel.

    share: of the tokens that is cut out; mean_span: tokens of a span, on average. Spans alternate
    with what stays, which comes first: the first token is never cut out, the last one always.
    Sentinels count down from the last id of the vocabulary. Both rows end with the vocabulary's
    end, so documents have none around them (Tokens: {end: false}).

    Counts are of whole rows, and so is the key: that of the row's first piece, (seed, epoch, uid,
    start), which no other row of the epoch has, on any number of ranks and in batches of any size.
    A deviation: officially a row is one text; here its documents stay apart. A span across their
    border is one span, whose sentinel is of the document where it begins.
    """

    share: float = 0.15
    mean_span: float = 3.0

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share = {self.share}; it lies between 0 and 1")
        if not self.mean_span >= 1:
            raise ValueError(f"mean_span = {self.mean_span}; a span has one token or more")

    def sizes(self, tokens: I64) -> Sizes:
        """As random_spans_noise_mask counts: in float32, rounded half to even.

        One token is treated as two of which the second is not there, as officially.
        """
        length = np.maximum(tokens, 2)
        wanted = np.rint(length.astype(np.float32) * np.float32(self.share)).astype(np.int64)
        cut = np.clip(wanted, 1, length - 1)
        wanted_spans = np.rint(cut.astype(np.float32) / np.float32(self.mean_span))
        spans = np.clip(wanted_spans.astype(np.int64), 1, np.minimum(cut, length - cut))
        return Sizes(tokens, np.where(tokens < 2, 0, cut), spans)

    def specs(
        self, view: ViewSpec, vocabulary: Vocabulary, *, around: bool
    ) -> tuple[ViewSpec, TargetSpec]:
        """Rows and targets as long as the longest of any row: of a full one, as a rule.

        Raises:
            ValueError: there are too few sentinels, or documents have special tokens.
        """
        self.check(view.size("L"), vocabulary.sentinels, around=around)
        read, written = self.widths(view.size("L"))
        left = replace(view, shape=(read,))
        return left, TargetSpec(view.group, 1, view.vocabulary, (written,))

    def check(self, length: int, sentinels: int, *, around: bool) -> None:
        """Check that rows of `length` tokens can be corrupted with so many sentinels.

        Raises:
            ValueError: there are too few, or documents have special tokens.
        """
        if around:
            raise ValueError(
                "documents stand between special tokens, and rows are ended by the task; set "
                "begin: false, end: false in Tokens"
            )
        most = int(self.sizes(np.arange(1, length + 1)).spans.max())
        if most > sentinels:
            raise ValueError(
                f"{most} spans in {length} tokens need as many sentinels; this vocabulary has "
                f"{max(0, sentinels)} for them; set vocabulary: bytes_t5, or shorter rows"
            )

    def draw(
        self, pieces: Pieces, stream: str, seed: int, vocabulary: Vocabulary, length: int
    ) -> I64:
        """(B, 2, left + written): which place of the row a token is of, and the id to put there.

        Place NOTHING: padding. Id KEEP: the token of that place.
        """
        keys, tokens = row_keys(pieces, seed), row_tokens(pieces)
        uniforms = keys.uniforms(stream, 2 * length)[0]
        return self.table(tokens, uniforms, self.widths(length), vocabulary)

    def table(
        self, tokens: I64, uniforms: F64, widths: tuple[int, int], vocabulary: Vocabulary
    ) -> I64:
        """The same of rows of so many tokens, by two uniform numbers for each, (B, 2 L)."""
        sizes = self.sizes(tokens)
        cut_BL = cut_out(sizes, uniforms, uniforms.shape[1] // 2)
        read, written = widths
        return np.concatenate(
            [what_is_left(cut_BL, sizes.tokens, read, vocabulary),
             what_is_written(cut_BL, sizes.tokens, written, vocabulary)], axis=2,
        )  # fmt: skip

    def widths(self, length: int) -> tuple[int, int]:
        """The longest of what is read and of what is written, of rows up to `length` tokens."""
        sizes = self.sizes(np.arange(1, length + 1))
        return int(sizes.left.max()), int(sizes.written.max())

    def counts(self, table: I64, pieces: Pieces, length: int) -> I64:
        """Tokens to be written, (B,)."""
        counts: I64 = (table[:, 0, self.widths(length)[0] :] != NOTHING).sum(1)
        return counts

    def apply(self, rows: LaidRows, table: Tensor, vocabulary: Vocabulary) -> Asked:
        """Take tokens and their documents from where the table says; bad ones become padding."""
        return taken(rows, table, self.widths(rows.tokens_BL.shape[1])[0], vocabulary)


def taken(rows: LaidRows, table: Tensor, read: int, vocabulary: Vocabulary) -> Asked:
    """What a table (B, 2, read + written) says, of rows on the device."""
    places_BW, ids_BW = table.unbind(1)
    source_BW = places_BW.clamp_min(0)
    tokens_BW = torch.where(ids_BW == KEEP, rows.tokens_BL.gather(1, source_BW), ids_BW)
    documents_BW = torch.where(places_BW == NOTHING, -1, rows.segments_2BL[0].gather(1, source_BW))
    parts = zip(*(x.tensor_split([read], 1) for x in (tokens_BW, documents_BW)), strict=True)
    (left_BL, left), (written_BL, written) = parts
    return Asked(
        LaidRows(torch.where(left < 0, vocabulary.pad, left_BL), counted(left)),
        torch.where(written < 0, IGNORED, written_BL),
        counted(written),
    )


def row_keys(pieces: Pieces, seed: int) -> Keys:
    """The keys of rows: those of their first pieces."""
    first = np.unique(pieces.segments[:, 0], return_index=True)[1]
    return Keys(seed, pieces.epochs[first], pieces.ids[first], np.zeros(1, dtype=np.int64))


def row_tokens(pieces: Pieces) -> I64:
    """How many tokens the rows have, (B,)."""
    counts = np.bincount(pieces.segments[:, 0], weights=pieces.lengths, minlength=pieces.rows)
    return counts.astype(np.int64)


def cut_out(sizes: Sizes, uniforms: F64, length: int) -> Bools:
    """Which tokens are cut out, (B, L): spans of what stays and of what goes, in turn.

    Both are cut in `spans` parts, none empty, all partitions alike likely.
    """
    steps = np.arange(length)
    goes = parts_of_row(sizes.cut, sizes.spans, uniforms[:, :length])
    stays = parts_of_row(sizes.tokens - sizes.cut, sizes.spans, uniforms[:, length:])
    turns = np.concatenate([2 * stays, 2 * goes + 1], axis=1)
    there = np.concatenate(
        [steps < (sizes.tokens - sizes.cut)[:, None], steps < sizes.cut[:, None]], axis=1
    )
    order = np.where(there, turns, 2 * length + 2).argsort(1, kind="stable")[:, :length]
    return (order >= length) & (steps < sizes.tokens[:, None])


def parts_of_row(items: I64, parts: I64, uniforms: F64) -> I64:
    """The part of each item, from 0, (B, L): a new one begins at parts - 1 of the items but one."""
    inner = np.arange(1, uniforms.shape[1]) < items[:, None]  # the first item begins the first part
    turns = np.where(inner, uniforms[:, 1:], 2.0).argsort(1, kind="stable").argsort(1)
    begins = inner & (turns < parts[:, None] - 1)
    return np.pad(begins, ((0, 0), (1, 0))).cumsum(1)


def begun_spans(cut_BL: Bools) -> tuple[Bools, I64]:
    """Where spans begin, and the number of the last that has begun, from 1; (B, L)."""
    begins = cut_BL & ~np.pad(cut_BL, ((0, 0), (1, 0)))[:, :-1]
    return begins, begins.cumsum(1)


def what_is_left(cut_BL: Bools, tokens: I64, width: int, vocabulary: Vocabulary) -> I64:
    """Places and ids, (B, 2, W): tokens that stay, a sentinel where a span was, the end."""
    begins, number = begun_spans(cut_BL)
    there = (np.arange(cut_BL.shape[1]) < tokens[:, None]) & (~cut_BL | begins)
    ids = np.where(begins, vocabulary.size - number, KEEP)
    return laid_out(there.cumsum(1) - 1, there, ids, ended(tokens, there.sum(1), width, vocabulary))


def what_is_written(cut_BL: Bools, tokens: I64, width: int, vocabulary: Vocabulary) -> I64:
    """Places and ids, (B, 2, W): a sentinel and the tokens of each span, the end."""
    begins, number = begun_spans(cut_BL)
    count = cut_BL.sum(1) + begins.sum(1)
    out = ended(tokens, count, width, vocabulary)
    behind = cut_BL.cumsum(1) - 1 + number  # a token's place: those before it, sentinels included
    out = laid_out(behind - 1, begins, vocabulary.size - number, out)
    return laid_out(behind, cut_BL, np.full(cut_BL.shape, KEEP), out)


def ended(tokens: I64, count: I64, width: int, vocabulary: Vocabulary) -> I64:
    """Rows of padding with the end behind `count` tokens; it is of the last token's document."""
    out = np.full((len(tokens), 2, width), NOTHING)
    rows = np.arange(len(tokens))
    out[rows, 0, count], out[rows, 1, count] = tokens - 1, vocabulary.end
    return out


def laid_out(to_BL: I64, there_BL: Bools, ids_BL: I64, out: I64) -> I64:
    """Put ids, and the places that they have in the row, at other places."""
    rows, places = np.nonzero(there_BL)
    out[rows, 0, to_BL[rows, places]] = places
    out[rows, 1, to_BL[rows, places]] = ids_BL[rows, places]
    return out


def counted(documents_BL: Tensor) -> Tensor:
    """Documents and the positions in each, (2, B, L); documents are runs of one number."""
    places = torch.arange(documents_BL.shape[1], device=documents_BL.device).expand_as(documents_BL)
    begins = torch.ones_like(documents_BL, dtype=torch.bool)
    begins[:, 1:] = documents_BL[:, 1:] != documents_BL[:, :-1]
    first = torch.where(begins, places, 0).cummax(1).values
    positions = torch.where(documents_BL < 0, 0, places - first)
    return torch.stack([documents_BL, positions])
