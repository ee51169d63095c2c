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
from .tasks import KEEP, NOTHING, Asked, HidingTask, LaidRows, check_shares, random_tokens
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
        sizes = np.where(pieces.totals > 0, sizes, 0)  # of a bad document nothing came
        counts = self.hidden(sizes)
        chosen = distinct(pieces.keys(seed), stream, sizes, counts)
        begins = pieces.segments[:, 1] + pieces.special[:, 0] - (np.cumsum(sizes) - sizes)
        places = chosen.places + np.repeat(begins, counts)
        in_rows = np.bincount(pieces.segments[:, 0], weights=counts, minlength=pieces.rows)
        put = self.put_there(chosen.words, vocabulary)
        return by_row(places, put, in_rows.astype(np.int64))

    def counts(self, table: I64, pieces: Pieces, length: int) -> I64:
        """How many tokens of each row are hidden or kept, (B,); of words at most so many."""
        hidden = self.hidden(pieces.lengths - pieces.special.sum(1))
        counts = np.bincount(pieces.segments[:, 0], weights=hidden, minlength=pieces.rows)
        return counts.astype(np.int64)

    def apply(self, rows: LaidRows, table: Tensor, vocabulary: Vocabulary) -> Asked:
        """Put ids where the table says, in place; the table has none for a bad document."""
        tokens_BL, (places_BS, put_BS) = rows.tokens_BL, table.unbind(1)
        was_BS = tokens_BL.gather(1, places_BS)
        targets_BL = torch.full_like(tokens_BL, IGNORED)
        targets_BL.scatter_(1, places_BS, was_BS.where(put_BS != NOTHING, IGNORED))
        # fresh pages would cost as much as all above; NOTHING and KEEP are below all ids
        tokens_BL.scatter_(1, places_BS, put_BS.where(put_BS >= 0, was_BS))
        return Asked(rows, targets_BL, None)

    def hidden(self, candidates: I64) -> I64:
        """How many of so many tokens are hidden: rounded half to even, at least one of any."""
        wanted = np.rint(self.share * candidates).astype(np.int64)
        hidden: I64 = np.minimum(np.maximum(wanted, 1), candidates)
        return hidden

    def put_there(self, words: U64, vocabulary: Vocabulary) -> I64:
        """The mask, a random token of text or KEEP, by one number of 32 bits for each.

        Which random token it is, is told by the place of the number in their share of all numbers.
        """
        what, both = words * WORD, self.mask + self.random
        put = np.where(what < self.mask, vocabulary.mask, KEEP)
        some = (what >= self.mask) & (what < both)
        inside = (what[some] - self.mask) / (self.random or 1.0)
        put[some] = random_tokens(np.clip(inside, 0.0, 1.0 - WORD), vocabulary)
        return put


def by_row(places: I64, put: I64, sizes: I64) -> I64:
    """Put places and what is there, (n,), `sizes` of each row, side by side, as `draw` says."""
    first, widest = np.cumsum(sizes) - sizes, max(1, int(sizes.max()))
    table = np.empty((len(sizes), 2, widest), dtype=np.int64)
    table[:] = [[0], [NOTHING]]
    some = sizes > 0
    table[some, 0], table[some, 1] = places[first[some]][:, None], put[first[some]][:, None]
    at = np.arange(len(places)) + np.repeat(np.arange(len(sizes)) * 2 * widest - first, sizes)
    for column, values in enumerate((places, put)):
        table.reshape(-1)[at + column * widest] = values
    return table


class Distinct(NamedTuple):
    """Places that were chosen, (n,), piece by piece, and a random number of 32 bits for each.

    places: counted over those of all pieces, which stand behind each other.
    """

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
        draws = 2 * blocks
        drawn, words = keys.ragged(stream, blocks).reshape(-1, 2).T
        inside = drawn * np.repeat(sizes.astype(np.uint64), draws)
        inside >>= np.uint64(32)
        places = inside.view(np.int64)
        places += np.repeat(np.cumsum(sizes) - sizes, draws)
        new = np.flatnonzero(first_seen(places, int(sizes.sum())))
        begins, ends = np.searchsorted(new, [np.cumsum(draws) - draws, np.cumsum(draws)])
        lacking = ends - begins < counts
        if not lacking.any():
            before = np.cumsum(counts) - counts
            taken = new[np.arange(int(counts.sum())) + np.repeat(begins - before, counts)]
            return Distinct(places[taken], words[taken])
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
