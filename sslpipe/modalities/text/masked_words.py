"""Words are hidden whole: BERT's and ALBERT's variant, and tokens of texts laid on the device."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...batch import IGNORED
from ...rng import Keys
from .marks import WORD
from .masked import MaskedTokens
from .pieces import Pieces
from .tasks import KEEP, NOTHING, Asked, LaidRows
from .vocabulary import Vocabulary

I64 = npt.NDArray[np.int64]
PUT_BITS, TURN_BITS = 32, 24  # of a number of the table: what is put there, and when it is taken
OPENS = 1 << (PUT_BITS + TURN_BITS)  # its bit: the word of that number begins a group of words
ROUNDS = 8  # in which words are passed over that would be too many; no text was seen to need 5


@dataclass(frozen=True, kw_only=True)
class MaskedWords(MaskedTokens):
    """MaskedTokens where it is known on the device alone which tokens are words, or text at all.

    Words are taken in the order of random numbers of 24 bits, one for each token, until the share
    is reached, and one that would be too many is passed over. Without `words` each token is one:
    so are the rows hidden that a task parts in two texts (pairs.py).

    The table is (B, L): at the step of each token its turn, and at the first steps of each piece
    what is put at its first, second ... hidden token.
    """

    def draw(
        self, pieces: Pieces, stream: str, seed: int, vocabulary: Vocabulary, length: int
    ) -> I64:
        """Each piece by its own key: (seed, epoch, uid, start)."""
        keys, steps = pieces.keys(seed), int(pieces.lengths.max())
        turn = keys.words(stream, steps)[0] >> np.uint64(32 - TURN_BITS)
        odds = 1 / np.arange(1, self.most + 1)
        table = turn.astype(np.int64) << PUT_BITS | opens(keys, stream, steps, odds)
        most = int(self.hidden(pieces.lengths).max())
        put = self.put_there(keys.words(f"{stream}/put", most)[0], vocabulary)
        table[:, :most] |= put - KEEP
        return pieces.laid(table, NOTHING, length)

    def apply(self, rows: LaidRows, table: Tensor, vocabulary: Vocabulary) -> Asked:
        """Hide whole words; a bad document is not asked for, nor are special tokens."""
        tokens_BL, documents_BL = rows.tokens_BL, rows.segments_2BL[0]
        text_BL = (documents_BL >= 0) & is_text(tokens_BL, vocabulary)
        begins_BL = torch.ones_like(text_BL)
        if self.words:
            begins_BL = rows.marks_BL & WORD != 0
        words = words_of(text_BL, documents_BL, begins_BL, table)
        words = words._replace(heads_BL=words.groups_BL)  # groups are hidden whole
        rounds = ROUNDS if self.words else 1
        chosen_BL = chosen(words, self._budgets(words.texts_BL), rounds=rounds)
        put_BL = put_at(chosen_BL, words.firsts_BL, table)
        placed_BL = torch.where(chosen_BL & (put_BL != KEEP), put_BL, tokens_BL)
        targets_BL = torch.where(chosen_BL, tokens_BL, IGNORED)
        return Asked(rows._replace(tokens_BL=placed_BL), targets_BL, None)

    def _budgets(self, candidates: Tensor) -> Tensor:
        """As `hidden`, on the device."""
        wanted = (self.share * candidates.double()).round().long()
        return wanted.clamp_min(1).minimum(candidates)


def opens(keys: Keys, stream: str, longest: int, odds: npt.NDArray[np.float64]) -> I64:
    """OPENS at the numbers of words where a group begins, (m, longest), else 0.

    odds: of groups of one word, of two, and so on.
    """
    if len(odds) == 1:
        return np.full((len(keys.uids), longest), OPENS)
    ends = np.cumsum(odds / odds.sum())[:-1]
    drawn = keys.uniforms(f"{stream}/groups", longest)[0]
    begins = np.cumsum(np.searchsorted(ends, drawn, side="right") + 1, axis=1)
    found = np.zeros((len(begins), longest + 1), dtype=np.int64)
    np.put_along_axis(found, np.minimum(begins, longest), OPENS, axis=1)
    found[:, 0] = OPENS
    return found[:, :longest]


def put_at(chosen_BL: Tensor, firsts_BL: Tensor, table: Tensor) -> Tensor:
    """What is put at each hidden token of a document, by how many are hidden before it."""
    count_BL = chosen_BL.cumsum(1)
    before_BL = (count_BL - chosen_BL.long()).gather(1, firsts_BL)
    number_BL = firsts_BL + (count_BL - 1 - before_BL).clamp_min(0)
    return (table.gather(1, number_BL) & (1 << PUT_BITS) - 1) + KEEP


def is_text(tokens_BL: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Which tokens are none of the four special ones, (B, L) bool."""
    special = vocabulary.pad, vocabulary.begin, vocabulary.end, vocabulary.mask
    return torch.stack([tokens_BL != token for token in special]).all(0)


class Words(NamedTuple):
    """Of each token, (B, L): its document's and its word's facts. `text_BL`: the others are none.

    heads_BL: place of the first token of its word, of which there are hidden all or none, groups_BL
    of its group of words, and turns_BL the group's turn; documents_BL: from 0, padding has the
    number behind the last; texts_BL: tokens of text in it; firsts_BL: place of its first token.
    """

    text_BL: Tensor
    heads_BL: Tensor
    groups_BL: Tensor
    turns_BL: Tensor
    documents_BL: Tensor
    texts_BL: Tensor
    firsts_BL: Tensor


def words_of(text_BL: Tensor, documents_BL: Tensor, begins_BL: Tensor, table: Tensor) -> Words:
    """Put tokens together to words, and words to the groups that the table says.

    A word goes no further than text of its document does. Words are numbered within a document, and
    the table's bit OPENS at the step of that number says whether a group begins.
    """
    width = text_BL.shape[1]
    places_BL = torch.arange(width, device=text_BL.device).expand_as(documents_BL)
    cut_BL = torch.ones_like(text_BL)
    cut_BL[:, 1:] = (documents_BL[:, 1:] != documents_BL[:, :-1]) | ~text_BL[:, :-1]
    new_BL = torch.ones_like(text_BL)
    new_BL[:, 1:] = documents_BL[:, 1:] != documents_BL[:, :-1]
    first_BL = torch.where(new_BL, places_BL, 0).cummax(1).values  # of the document
    begins_BL = (begins_BL | cut_BL) & text_BL
    count_BL = begins_BL.cumsum(1)
    number_BL = count_BL - count_BL.gather(1, first_BL) + begins_BL.gather(1, first_BL).long() - 1
    step_BL = (first_BL + number_BL).clamp(0, width - 1)
    opens_BL = begins_BL & ((table.gather(1, step_BL) & OPENS != 0) | cut_BL)
    groups_BL = torch.where(opens_BL, places_BL, 0).cummax(1).values
    documents_BL = torch.where(documents_BL < 0, width, documents_BL)
    return Words(
        text_BL,
        torch.where(begins_BL, places_BL, 0).cummax(1).values,
        groups_BL,
        (table >> PUT_BITS & (1 << TURN_BITS) - 1).gather(1, groups_BL),
        documents_BL,
        sums(text_BL.long(), documents_BL, width + 1),
        first_BL,
    )


def sums(values_BL: Tensor, groups_BL: Tensor, most: int) -> Tensor:
    """Add up the values of each group, and tell every member, (B, L)."""
    total = values_BL.new_zeros(len(values_BL), most).scatter_add_(1, groups_BL, values_BL)
    return total.gather(1, groups_BL)


def chosen(words: Words, budgets_BL: Tensor, *, rounds: int) -> Tensor:
    """Which tokens are hidden, (B, L) bool: words by their turns, but none that is too many.

    In a round, words that fit are taken in order down to the first that is too many; in the next
    one, those behind it of the ones that fit still. That is the order of one by one.
    """
    width = budgets_BL.shape[1]
    places_BL = torch.arange(width, device=budgets_BL.device).expand_as(budgets_BL)
    head_BL = words.text_BL & (words.heads_BL == places_BL)
    key_BL = (words.documents_BL * 2 + ~head_BL) << TURN_BITS | words.turns_BL
    order_BL = key_BL.argsort(dim=1, stable=True)
    tokens_BL = sums(words.text_BL.long(), words.heads_BL, width)  # of each word
    sizes_BL, documents_BL, left_BL, free_BL = (
        x.gather(1, order_BL) for x in (tokens_BL, words.documents_BL, budgets_BL, head_BL)
    )
    new_BL = torch.ones_like(free_BL)
    new_BL[:, 1:] = documents_BL[:, 1:] != documents_BL[:, :-1]
    first_BL = torch.where(new_BL, places_BL, 0).cummax(1).values
    taken_BL = torch.zeros_like(free_BL)
    for _ in range(rounds):
        weight_BL = sizes_BL * (free_BL & (sizes_BL <= left_BL))
        sum_BL = weight_BL.cumsum(1)
        before_BL = (sum_BL - weight_BL).gather(1, first_BL)
        fits_BL = (weight_BL > 0) & (sum_BL - before_BL <= left_BL)
        left_BL = left_BL - sums(weight_BL * fits_BL, documents_BL, width + 1)
        taken_BL, free_BL = taken_BL | fits_BL, free_BL & ~fits_BL
    back_BL = torch.zeros_like(taken_BL).scatter(1, order_BL, taken_BL)
    return back_BL.gather(1, words.heads_BL) & words.text_BL
