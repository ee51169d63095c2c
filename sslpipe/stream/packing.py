"""Which pieces of which documents make up the rows of a window: pure functions of lengths.

A **row** is `length` steps that a method sees at once (tokens of text, samples of sound); a
**segment** is a piece of a document in a row. Nothing is drawn here, and nothing of one window
depends on another, so a row is a function of (manifest, seed, recipe) and its number.

    one       a row for each document, what is longer is cut off            most fine-tuning
    split     a row for each piece of `length`: no step is lost
    overlap   the same, but a piece begins with the last step of the one before: a model that
              guesses each step from those before it is asked for every step but the first, once
    concat    documents behind each other, cut every `length`               GPT, T5
    sentences       whole sentences behind each other, until the next one does not fit; a row has
                    the end of a document and the beginning of the next    RoBERTa, FULL-SENTENCES
    doc_sentences   the same, but a document begins a row                   RoBERTa, DOC-SENTENCES
    best_fit  whole documents, each in the row that it fills best; only what is longer than a row
              is cut, into pieces of a row, and no step is lost             Ding et al. 2024

"The tightest bin" is a search among the free spaces of open rows; these are bits of one integer.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .lanes import distinct_numbers

I64 = npt.NDArray[np.int64]


class Segments(NamedTuple):
    """Pieces of documents in the order of rows, and in a row from left to right: (m,) each."""

    documents: I64  # number in the window
    starts: I64  # of the piece in its document
    lengths: I64
    rows: I64  # number in the window, from 0, none is empty
    columns: I64  # where in the row it begins

    @property
    def row_count(self) -> int:
        """How many rows the window makes."""
        return int(self.rows[-1]) + 1 if len(self.rows) else 0


Packer = Callable[[I64, int], Segments]


class Sentences(NamedTuple):
    """How many sentences each document has, (n,), and how many steps each of all these, (s,)."""

    counts: I64
    lengths: I64


SentencePacker = Callable[[Sentences, int], Segments]


def one(lengths: I64, length: int) -> Segments:
    """A row for each document that is not empty, cut off after `length` steps."""
    documents = np.flatnonzero(lengths)
    taken = np.minimum(lengths[documents], length)
    nothing = np.zeros_like(documents)
    return Segments(documents, nothing, taken, np.arange(len(documents)), nothing)


def split(lengths: I64, length: int) -> Segments:
    """A row for each piece of at most `length` steps; all but a document's last are full."""
    documents, starts, taken = pieces_of(lengths, length)
    rows = np.arange(len(documents))
    return Segments(documents, starts, taken, rows, np.zeros_like(rows))


def overlap(lengths: I64, length: int) -> Segments:
    """A row for each piece of at most `length` steps, whose first is the last of the one before."""
    counts = np.where(lengths > 0, np.maximum(1, -(-(lengths - 1) // (length - 1))), 0)
    documents = np.repeat(np.arange(len(lengths)), counts)
    first = np.cumsum(counts) - counts
    rows = np.arange(len(documents))
    starts = (rows - first[documents]) * (length - 1)
    taken = np.minimum(lengths[documents] - starts, length)
    return Segments(documents, starts, taken, rows, np.zeros_like(rows))


def concat(lengths: I64, length: int) -> Segments:
    """Documents behind each other, cut every `length` steps; the last row of a window is short."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    # a segment begins wherever a document or a row does
    cuts = distinct_numbers(np.r_[ends - lengths, np.arange(0, total, length)])
    cuts = cuts[cuts < total]
    documents = np.searchsorted(ends, cuts, side="right")
    taken = np.diff(np.r_[cuts, total])
    starts = cuts - (ends - lengths)[documents]
    return Segments(documents, starts, taken, cuts // length, cuts % length)


def best_fit(lengths: I64, length: int) -> Segments:
    """Best fit, longest piece first; among rows with the same space the oldest is taken.

    A row that is full is closed; equal pieces keep the order of their documents. Rows come longest
    piece first: who reads them in turn must shuffle them.
    """
    documents, starts, taken = pieces_of(lengths, length)
    order = np.argsort(-taken, kind="stable")
    full = int(np.count_nonzero(taken == length))  # which come first, and have rows of their own
    rows, columns = np.empty_like(taken), np.zeros_like(taken)
    rows[order[:full]], rest = np.arange(full), order[full:]
    rows[rest], columns[rest] = fitted(taken[rest], length, full)
    by_row = np.lexsort((columns, rows))
    found = Segments(documents, starts, taken, rows, columns)
    return Segments(*(column[by_row] for column in found))


def fitted(pieces: I64, length: int, rows: int) -> tuple[list[int], list[int]]:
    """The row and the column of each piece, which come longest first, behind so many full rows."""
    spaces = 0  # bit s is set while a row with s free steps is open
    open_rows: list[deque[int]] = [deque() for _ in range(length + 1)]
    found, columns = list[int](), list[int]()
    for piece in pieces.tolist():
        fits = spaces >> piece
        if fits:
            space = piece + (fits & -fits).bit_length() - 1
            row = open_rows[space].popleft()
            if not open_rows[space]:
                spaces ^= 1 << space
        else:
            space, row, rows = length, rows, rows + 1
        found.append(row)
        columns.append(length - space)
        left = space - piece
        if left:
            open_rows[left].append(row)
            spaces |= 1 << left
    return found, columns


def pieces_of(lengths: I64, length: int) -> tuple[I64, I64, I64]:
    """Cut documents into pieces of at most `length`: document, start and length of each."""
    counts = -(-lengths // length)
    documents = np.repeat(np.arange(len(lengths)), counts)
    first = np.cumsum(counts) - counts
    starts = (np.arange(len(documents)) - first[documents]) * length
    return documents, starts, np.minimum(lengths[documents] - starts, length)


def sentences(found: Sentences, length: int) -> Segments:
    """Whole sentences in their order, as many as a row holds (Liu et al. 2019, section 4.2)."""
    return in_whole_sentences(found, length, np.zeros(len(found.counts), dtype=np.int64))


def doc_sentences(found: Sentences, length: int) -> Segments:
    """Whole sentences of one document, as many as a row holds (Liu et al. 2019, section 4.2)."""
    return in_whole_sentences(found, length, np.arange(len(found.counts)))


def in_whole_sentences(found: Sentences, length: int, groups: I64) -> Segments:
    """Fill rows with sentences; none holds those of documents of two `groups`, (n,).

    A sentence that is longer than a row is cut into pieces of a row; its rest is one as any other.
    """
    owners = np.repeat(np.arange(len(found.counts)), found.counts)
    sentence, _, sizes = pieces_of(found.lengths, length)
    documents = owners[sentence]
    rows, ends = filled_rows(sizes, groups[documents], length), np.cumsum(sizes)
    new_row, new_document = (np.diff(x, prepend=-1) != 0 for x in (rows, documents))
    begins = np.flatnonzero(new_row | new_document)  # of segments
    steps = ends - sizes  # before each piece, of all documents
    first_of = np.maximum.accumulate(np.where(new_document, steps, 0))
    row_at = np.maximum.accumulate(np.where(new_row, steps, 0))
    taken = np.diff(steps[begins], append=ends[-1] if len(ends) else 0)
    return Segments(
        documents[begins], (steps - first_of)[begins], taken, rows[begins],
        (steps - row_at)[begins],
    )  # fmt: skip


def filled_rows(sizes: I64, groups: I64, length: int) -> I64:
    """The row of each piece, as many as fit behind each other, from 0, (p,); groups ascend."""
    ends, begins = np.cumsum(sizes).tolist(), np.zeros(len(sizes), dtype=np.int64)
    group_ends = np.searchsorted(groups, groups, side="right").tolist()  # of each piece's group
    start, before = 0, 0
    while start < len(ends):
        begins[start] = 1
        start = min(bisect_right(ends, before + length, lo=start), group_ends[start])
        before = ends[start - 1]
    return np.cumsum(begins) - 1


PACKERS: Mapping[str, Packer] = MappingProxyType(
    {"one": one, "split": split, "overlap": overlap, "concat": concat, "best_fit": best_fit}
)
SENTENCE_PACKERS: Mapping[str, SentencePacker] = MappingProxyType(
    {"sentences": sentences, "doc_sentences": doc_sentences}
)
