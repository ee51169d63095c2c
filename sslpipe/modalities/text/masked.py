"""Tokens are hidden: BERT's masked language modelling."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...batch import IGNORED
from ...rng import U64, Keys
from .pieces import Pieces
from .tasks import KEEP, NOTHING, Asked, HidingTask, LaidRows, check_shares, replacements
from .vocabulary import Vocabulary

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
WORD = 2.0**-32  # of a uniform number of 32 bits, one step


@dataclass(frozen=True, kw_only=True)
class MaskedTokens(HidingTask):
    """BERT's masked tokens: an exact share of each piece, chosen by the piece's own key.

    Devlin et al. 2019, section 3.1, and create_pretraining_data.py: tokens are taken in a random
    order until the share is reached; 80 % of them become the mask, 10 % a random one, 10 % stay.
    words: words as marks.py has them are hidden whole (masked_words.py). most: words that are
    hidden together, up to so many with odds of 1 / n (ALBERT's n-grams have 3; there they begin at
    any token, here the text is cut into them). A deviation: BERT counts 15 % of the length with
    special tokens and draws random ones from the whole vocabulary; here the share is of the tokens
    that may be chosen, at least one (none, where every word is longer than the share), and random
    tokens are never special.

    A piece is drawn for no more tokens than are hidden, and a few (`distinct`): a random place and
    what is put there, each of 32 bits. A turn for every token would cost five times as much.
    """

    share: float = 0.15
    mask: float = 0.8
    random: float = 0.1
    words: bool = False
    most: int = 1

    def __post_init__(self) -> None:
        check_shares(self.share, self.mask, self.random)
        if not 1 <= self.most <= 10 or (self.most > 1 and not self.words):
            raise ValueError(
                f"most = {self.most} words are hidden together; it lies between 1 and 10, and is 1 "
                "without words: true"
            )

    def draw(
        self, pieces: Pieces, stream: str, seed: int, vocabulary: Vocabulary, length: int
    ) -> I64:
        """Each piece by its own key, (seed, epoch, uid, start): (B, 2, S) places and what is there.

        S: of the row that has most. Others repeat their first; a row without any has NOTHING.
        """
        sizes = pieces.lengths - pieces.special.sum(1)
        chosen = distinct(pieces.keys(seed), stream, sizes, self.hidden(sizes))
        begins = pieces.segments[:, 1] + pieces.special[:, 0]
        both = begins[chosen.pieces] + chosen.places, self.put_there(chosen.words, vocabulary)
        return by_row(np.stack(both), pieces.segments[chosen.pieces, 0], pieces.rows)

    def counts(self, table: I64, pieces: Pieces, length: int) -> I64:
        """How many tokens of each row are hidden or kept, (B,); of words at most so many."""
        hidden = self.hidden(pieces.lengths - pieces.special.sum(1))
        counts = np.bincount(pieces.segments[:, 0], weights=hidden, minlength=pieces.rows)
        return counts.astype(np.int64)

    def apply(self, rows: LaidRows, table: Tensor, vocabulary: Vocabulary) -> Asked:
        """Put ids where the table says, in place; a bad document is not asked for."""
        tokens_BL, (places_BS, put_BS) = rows.tokens_BL, table.unbind(1)
        was_BS = tokens_BL.gather(1, places_BS)
        asked_BS = (put_BS != NOTHING) & (rows.segments_2BL[0].gather(1, places_BS) >= 0)
        now_BS = torch.where(asked_BS & (put_BS != KEEP), put_BS, was_BS)
        targets_BL = torch.full_like(tokens_BL, IGNORED)
        targets_BL.scatter_(1, places_BS, torch.where(asked_BS, was_BS, IGNORED))
        tokens_BL.scatter_(1, places_BS, now_BS)  # fresh pages would cost as much as all above
        return Asked(rows, targets_BL, None)

    def hidden(self, candidates: I64) -> I64:
        """How many of so many tokens are hidden: rounded half to even, at least one of any."""
        wanted = np.rint(self.share * candidates).astype(np.int64)
        hidden: I64 = np.minimum(np.maximum(wanted, 1), candidates)
        return hidden

    def put_there(self, words: U64, vocabulary: Vocabulary) -> I64:
        """The mask, a random token or KEEP, by one number of 32 bits for each."""
        what: F64 = words.astype(np.float64) * WORD
        inside = (what - self.mask) / (self.random or 1.0)  # of the share of random tokens
        which = np.clip(inside, 0.0, 1.0 - WORD)
        return replacements(self.mask, self.random, what, which, vocabulary)


def by_row(values: I64, rows: I64, count: int) -> I64:
    """Put values (2, n), whose `rows` ascend, side by side: (count, 2, S), as `draw` says."""
    sizes = np.bincount(rows, minlength=count)
    first, widest = np.cumsum(sizes) - sizes, max(1, int(sizes.max()))
    padding = np.full((2, count), NOTHING)
    padding[0], padding[:, sizes > 0] = 0, values[:, first[sizes > 0]]
    table = np.empty((count, 2, widest), dtype=np.int64)
    table[...] = padding.T[..., None]
    inside = np.arange(widest) < sizes[:, None]
    table[:, 0][inside], table[:, 1][inside] = values
    return table


class Distinct(NamedTuple):
    """Places that were chosen, (n,) each, and a random number of 32 bits for each."""

    pieces: I64
    places: I64
    words: U64


def distinct(keys: Keys, stream: str, sizes: I64, counts: I64) -> Distinct:
    """Choose `counts` (m,) of the first `sizes` places of each piece, all subsets alike likely.

    They are the first so many of random places that are not repeats. How many are drawn tells but
    whether they suffice; a piece of which they do not is drawn further.
    """
    blocks = expected_draws(sizes, counts) // 2 + 1  # a block has two places and a word for each
    blocks[counts == 0] = 0
    while True:
        draws, first = 2 * blocks, np.cumsum(sizes) - sizes
        place, words = keys.ragged(stream, blocks).reshape(-1, 2).T
        places = place * np.repeat(sizes.astype(np.uint64), draws) >> np.uint64(32)
        inside = places.astype(np.int64)
        new = first_seen(np.repeat(first, draws) + inside, int(sizes.sum()))
        number = np.concatenate([[0], np.cumsum(new)])
        ends = np.cumsum(draws)
        before = number[ends - draws]
        lacking = number[ends] - before < counts
        if not lacking.any():
            new &= number[:-1] < np.repeat(before + counts, draws)
            pieces = np.repeat(np.arange(len(counts)), counts)
            return Distinct(pieces, inside[new], words[new])
        blocks = np.where(lacking, 2 * blocks, blocks)


def expected_draws(sizes: I64, counts: I64) -> I64:
    """How many draws of `sizes` are needed for `counts` that differ, and four deviations more."""
    left = np.maximum(sizes - counts, 1)
    mean = sizes * np.log(np.maximum(sizes, 1) / left)
    draws: F64 = np.ceil(mean + 4 * np.sqrt(np.maximum(mean - counts, 0.0)))
    return draws.astype(np.int64)


def first_seen(numbers: I64, below: int) -> npt.NDArray[np.bool_]:
    """Which of some numbers stand in none of the places before them, (n,)."""
    at = np.arange(len(numbers), dtype=np.int32)
    first = np.empty(below, dtype=np.int32)
    first[numbers[::-1]] = at[::-1]  # what is put last stays
    seen: npt.NDArray[np.bool_] = first[numbers] == at
    return seen
