"""Tokens, or whole words, are hidden: BERT's masked language modelling."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...batch import IGNORED
from ...rng import Keys
from .marks import WORD
from .pieces import Pieces
from .tasks import KEEP, NOTHING, Asked, HidingTask, LaidRows, check_shares, replacements
from .vocabulary import Vocabulary

I64 = npt.NDArray[np.int64]
PUT_BITS, TURN_BITS = 32, 24  # of a number of the table: what is put there, and when it is taken
OPENS = 1 << (PUT_BITS + TURN_BITS)  # its bit: the word of that number begins a group of words
ROUNDS = 8  # in which words are passed over that would be too many; no text was seen to need 5


@dataclass(frozen=True, kw_only=True)
class MaskedTokens(HidingTask):
    """BERT's masked tokens: an exact share of each piece, chosen by the piece's own key.

    Devlin et al. 2019, section 3.1, and create_pretraining_data.py: words are taken in a random
    order until the share is reached, and one that would be too many is passed over; of their tokens
    80 % become the mask, 10 % a random one, 10 % stay. words: as marks.py has them, hidden whole;
    without, each token is one. most: words that are hidden together, up to so many with odds of
    1 / n (ALBERT's n-grams have 3; there they begin at any token, here the text is cut into them).
    A deviation: BERT counts 15 % of the length with special tokens and draws random ones from the
    whole vocabulary; here the share is of the tokens that may be chosen, at least one (none,
    where every word is longer than the share), and random tokens are never special.

    Which tokens are words is known on the device alone, so the choice is made there, by numbers of
    24 bits that are drawn here for each token.
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

    def put(
        self, keys: Keys, stream: str, open_mL: npt.NDArray[np.bool_], vocabulary: Vocabulary
    ) -> I64:
        """(m, longest) of each step its turn and what is put there; NOTHING: it is no text."""
        drawn = keys.uniforms(stream, 3 * open_mL.shape[1])[0].reshape(*open_mL.shape, 3)
        put = replacements(self.mask, self.random, drawn[..., 1], drawn[..., 2], vocabulary)
        turn = (drawn[..., 0] * 2**TURN_BITS).astype(np.int64)
        table = turn << PUT_BITS | put - KEEP | self._opens(keys, stream, open_mL.shape[1])
        return np.where(open_mL, table, NOTHING)

    def _opens(self, keys: Keys, stream: str, longest: int) -> I64:
        """OPENS at the numbers of words where a group begins, (m, longest), else 0."""
        if self.most == 1:
            return np.full((len(keys.uids), longest), OPENS)
        shares = 1 / np.arange(1, self.most + 1)
        ends = np.cumsum(shares / shares.sum())[:-1]
        drawn = keys.uniforms(f"{stream}/groups", longest)[0]
        begins = np.cumsum(np.searchsorted(ends, drawn, side="right") + 1, axis=1)
        opens = np.zeros((len(begins), longest + 1), dtype=np.int64)
        np.put_along_axis(opens, np.minimum(begins, longest), OPENS, axis=1)
        opens[:, 0] = OPENS
        return opens[:, :longest]

    def counts(self, table: I64, pieces: Pieces, length: int) -> I64:
        """How many tokens of each row are asked for at most, (B,)."""
        hidden = self.hidden(torch.from_numpy(pieces.open_steps().sum(1))).numpy()
        counts = np.bincount(pieces.segments[:, 0], weights=hidden, minlength=pieces.rows)
        return counts.astype(np.int64)

    def hidden(self, candidates: Tensor) -> Tensor:
        """How many of so many tokens are hidden: rounded half to even, at least one of any."""
        wanted = (self.share * candidates.double()).round().long()
        return wanted.clamp_min(1).minimum(candidates)

    def apply(self, rows: LaidRows, table: Tensor, vocabulary: Vocabulary) -> Asked:
        """Hide whole words; a bad document is not asked for, nor are special tokens."""
        tokens_BL, documents_BL = rows.tokens_BL, rows.segments_2BL[0]
        text_BL = (table != NOTHING) & (documents_BL >= 0) & is_text(tokens_BL, vocabulary)
        begins_BL = torch.ones_like(text_BL)
        if self.words:
            begins_BL = rows.marks_BL & WORD != 0
        words = words_of(text_BL, documents_BL, begins_BL, table)
        budgets_BL = self.hidden(words.texts_BL)
        chosen_BL = chosen(words, budgets_BL, rounds=ROUNDS if self.words else 1)
        put_BL = (table & (1 << PUT_BITS) - 1) + KEEP
        placed_BL = torch.where(chosen_BL & (put_BL != KEEP), put_BL, tokens_BL)
        targets_BL = torch.where(chosen_BL, tokens_BL, IGNORED)
        return Asked(rows._replace(tokens_BL=placed_BL), targets_BL, None)


def is_text(tokens_BL: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Which tokens are none of the four special ones, (B, L) bool."""
    special = vocabulary.pad, vocabulary.begin, vocabulary.end, vocabulary.mask
    return torch.stack([tokens_BL != token for token in special]).all(0)


class Words(NamedTuple):
    """Of each token, (B, L): its document's and its word's facts. `text_BL`: the others are none.

    heads_BL: place of its word's first token; sizes_BL: tokens of the word; turns_BL: its turn;
    documents_BL: from 0, padding has the number behind the last; texts_BL: tokens of text in it.
    """

    text_BL: Tensor
    heads_BL: Tensor
    sizes_BL: Tensor
    turns_BL: Tensor
    documents_BL: Tensor
    texts_BL: Tensor


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
    heads_BL = torch.where(opens_BL, places_BL, 0).cummax(1).values
    documents_BL = torch.where(documents_BL < 0, width, documents_BL)
    return Words(
        text_BL,
        heads_BL,
        sums(text_BL.long(), heads_BL, width),
        (table >> PUT_BITS & (1 << TURN_BITS) - 1).gather(1, heads_BL),
        documents_BL,
        sums(text_BL.long(), documents_BL, width + 1),
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
    sizes_BL, documents_BL, left_BL, free_BL = (
        x.gather(1, order_BL) for x in (words.sizes_BL, words.documents_BL, budgets_BL, head_BL)
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
