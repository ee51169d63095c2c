"""Spans of whole words are hidden together, as SpanBERT does."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...batch import IGNORED
from .marks import WORD
from .masked_words import PUT_BITS, ROUNDS, TURN_BITS, chosen, is_text, opens, put_at, words_of
from .pieces import Pieces
from .spans import MaskedSpans
from .tasks import KEEP, NOTHING, Asked, LaidRows, random_tokens
from .vocabulary import Vocabulary

I64 = npt.NDArray[np.int64]
KIND_AT = PUT_BITS + TURN_BITS + 1  # bits of the table behind that of OPENS
MASK, RANDOM, SAME = range(3)  # what is done with a token


@dataclass(frozen=True, kw_only=True)
class MaskedWordSpans(MaskedSpans):
    """MaskedSpans of words, which are known on the device alone.

    Lengths count words, as officially; a span begins with a word, and the last one is cut between
    two: where the next word would be too many, ones behind it are taken that are not. Deviations,
    beside that: the text is cut into spans by their lengths, and these are hidden in a random
    order, where officially a span begins at any word; of a word that is longer than the share
    nothing is hidden.

    The table is that of MaskedWords, and at each step what is done with its token, MASK and so on;
    at the first steps of each piece are random tokens for its first, second ... hidden one.
    """

    def draw(
        self, pieces: Pieces, stream: str, seed: int, vocabulary: Vocabulary, length: int
    ) -> I64:
        """Each piece by its own key: (seed, epoch, uid, start)."""
        keys, steps = pieces.keys(seed), int(pieces.lengths.max())
        turn = keys.words(stream, steps)[0] >> np.uint64(32 - TURN_BITS)
        what = keys.uniforms(f"{stream}/what", steps)[0]
        kind = np.searchsorted([self.mask, self.mask + self.random], what, side="right")
        table = turn.astype(np.int64) << PUT_BITS | opens(keys, stream, steps, self.odds)
        most = int(self.hidden(pieces.lengths).max())
        which = keys.uniforms(f"{stream}/put", most)[0]
        ids = random_tokens(which, vocabulary)
        table |= kind << KIND_AT
        table[:, :most] |= ids - KEEP
        return pieces.laid(table, NOTHING, length)

    def counts(self, table: I64, pieces: Pieces, length: int) -> I64:
        """How many tokens of each row are hidden or kept at most, (B,)."""
        hidden = self.hidden(pieces.lengths - pieces.special.sum(1))
        counts = np.bincount(pieces.segments[:, 0], weights=hidden, minlength=pieces.rows)
        return counts.astype(np.int64)

    def apply(self, rows: LaidRows, table: Tensor, vocabulary: Vocabulary) -> Asked:
        """Hide spans; a bad document is not asked for, nor are special tokens."""
        tokens_BL, documents_BL = rows.tokens_BL, rows.segments_2BL[0]
        text_BL = (documents_BL >= 0) & is_text(tokens_BL, vocabulary)
        words = words_of(text_BL, documents_BL, rows.marks_BL & WORD != 0, table)
        budgets_BL = (self.share * words.texts_BL.double()).ceil().long()
        chosen_BL = chosen(words, budgets_BL, rounds=ROUNDS)
        kind_BL = table >> KIND_AT & 3
        if self.per == "span":
            kind_BL = kind_BL.gather(1, words.groups_BL)
        random_BL = put_at(chosen_BL, words.firsts_BL, table)
        put_BL = torch.where(kind_BL == RANDOM, random_BL, tokens_BL)
        put_BL = torch.where(kind_BL == MASK, vocabulary.mask, put_BL)
        placed_BL = torch.where(chosen_BL, put_BL, tokens_BL)
        targets_BL = torch.where(chosen_BL, tokens_BL, IGNORED)
        return Asked(rows._replace(tokens_BL=placed_BL), targets_BL, None)
