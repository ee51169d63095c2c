"""Spans of tokens are hidden together, as SpanBERT does."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ...rng import Keys
from .pieces import Pieces
from .tasks import NOTHING, HidingTask, check_shares, replacements
from .vocabulary import Vocabulary

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class MaskedSpans(HidingTask):
    """SpanBERT's spans: a share of each piece, in runs, chosen by the piece's own key.

    Joshi et al. 2020, arXiv:1907.10529, section 3.1, and masking.py: lengths are geometric, cut to
    `longest` and renormalised; a span begins at any token that is not hidden yet; the last one is
    cut where the share, rounded up, is reached. per: what of mask, random token and as it was is
    drawn for each `span`, as in the paper, or for each `token`, the default of its code. words:
    spans are of whole words, as officially (word_spans.py); without, a length counts tokens.
    Deviations: the share is of tokens of text; there is no span boundary objective.
    """

    share: float = 0.15
    mask: float = 0.8
    random: float = 0.1
    geometric: float = 0.2
    longest: int = 10
    per: Literal["span", "token"] = "span"
    words: bool = False

    def __post_init__(self) -> None:
        check_shares(self.share, self.mask, self.random)
        if not 0 < self.geometric < 1:
            raise ValueError(f"geometric = {self.geometric}; it lies between 0 and 1")
        if self.longest < 1:
            raise ValueError(f"longest = {self.longest}; a span has one token or more")

    def draw(
        self, pieces: Pieces, stream: str, seed: int, vocabulary: Vocabulary, length: int
    ) -> I64:
        """Each piece by its own key: (seed, epoch, uid, start)."""
        put_mL = self.put(pieces.keys(seed), stream, pieces.open_steps(), vocabulary)
        return pieces.laid(put_mL, NOTHING, length)

    def put(
        self, keys: Keys, stream: str, open_mL: npt.NDArray[np.bool_], vocabulary: Vocabulary
    ) -> I64:
        """Four uniform numbers a token: its turn, the length of its span, and what is put there."""
        turn, size, what, which = np.moveaxis(
            keys.uniforms(stream, 4 * open_mL.shape[1])[0].reshape(*open_mL.shape, 4), -1, 0
        )
        budgets = self.hidden(open_mL.sum(1))
        begun_mL = spans_of(open_mL, turn, self.sizes(size), budgets)
        if self.per == "span":
            what = np.take_along_axis(what, np.maximum(begun_mL, 0), 1)
        put = replacements(self.mask, self.random, what, which, vocabulary)
        return np.where(begun_mL >= 0, put, NOTHING)

    def hidden(self, candidates: I64) -> I64:
        """How many of so many tokens are hidden."""
        hidden: F64 = np.ceil(self.share * candidates)
        return hidden.astype(np.int64)

    @property
    def odds(self) -> F64:
        """Of lengths from 1 to `longest`, each by the first."""
        return np.power(1 - self.geometric, np.arange(self.longest, dtype=np.float64))

    def sizes(self, uniforms: F64) -> I64:
        """Lengths of spans, 1 to `longest`, of uniform numbers."""
        ends = np.cumsum(self.odds / self.odds.sum())[:-1]
        return np.searchsorted(ends, uniforms, side="right") + 1


def spans_of(open_mL: npt.NDArray[np.bool_], turn: F64, sizes: I64, budgets: I64) -> I64:
    """Where the span of each hidden token begins, (m, L); -1: it is not hidden.

    A uniform choice among tokens, drawn again where one is hidden already, is the order of one
    uniform number each: the next is the first of those that are not hidden.
    """
    begun_mL = np.full(open_mL.shape, NOTHING)
    steps, pieces = np.arange(open_mL.shape[1]), np.arange(len(open_mL))
    left = budgets.copy()
    while left.any():
        free = open_mL & (begun_mL < 0)
        first = np.where(free, turn, 2.0).argmin(1)
        ends = first + sizes[pieces, first]
        span = free & (steps >= first[:, None]) & (steps < ends[:, None])
        span &= span.cumsum(1) <= left[:, None]  # the last one is cut
        begun_mL = np.where(span, first[:, None], begun_mL)
        left -= span.sum(1)
    return begun_mL
