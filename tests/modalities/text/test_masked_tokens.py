"""Single tokens are hidden: as a slow loop over the same draws hides them, and all alike likely."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy import stats

from sslpipe import rng
from sslpipe.batch import IGNORED
from sslpipe.modalities.text import masked
from sslpipe.modalities.text.masked import MaskedTokens
from sslpipe.modalities.text.tasks import KEEP, NOTHING, LaidRows
from sslpipe.modalities.text.vocabulary import Bytes

from .test_tasks import pieces

PLAIN = Bytes()
SEED, STREAM = 3, "targets/mlm"


def slow(task, uid, size):
    """Place -> number of 32 bits, of one piece of `size` tokens: a draw after the other."""
    wanted = min(size, max(1, round(task.share * size)))
    drawn = rng.words(4000, seed=SEED, epoch=0, stream=STREAM, ids=uid)
    found = {}
    for place, word in zip(drawn[::2].tolist(), drawn[1::2].tolist(), strict=True):
        if len(found) < wanted:
            found.setdefault(place * size >> 32, word)
    return found


def put_by(task, word):
    """The mask, a random byte, or KEEP."""
    what = word / 2**32
    if what < task.mask:
        return PLAIN.mask
    if what >= task.mask + task.random:
        return KEEP
    return PLAIN.first + int((what - task.mask) / task.random * 256)


def applied(task, table, lengths, width, special=False):
    """Rows of bytes, documents as `lengths` says, and what the task makes of them."""
    tokens = torch.randint(
        4, 260, (len(lengths), width), generator=torch.Generator().manual_seed(0)
    )
    documents = torch.full((len(lengths), width), -1)
    for row, sizes in enumerate(lengths):
        for number in range(len(sizes)):
            first, last = sum(sizes[:number]), sum(sizes[: number + 1])
            documents[row, first:last] = number
            if special:
                tokens[row, [first, last - 1]] = PLAIN.end
    rows = LaidRows(tokens, torch.stack([documents, documents * 0]))
    return tokens.clone(), task.apply(rows, torch.from_numpy(table), PLAIN)


@pytest.mark.parametrize("settings", [{}, {"share": 0.9}, {"share": 0.3, "random": 0.2}])
@pytest.mark.parametrize("special", [False, True])
def test_as_a_slow_loop_hides_them(settings, special):
    task, edges = MaskedTokens(**settings), np.random.default_rng(0)
    lengths = [edges.integers(2, 30, edges.integers(1, 6)).tolist() for _ in range(20)] + [[2], [3]]
    made = pieces(lengths, special=special)
    table = task.draw(made, STREAM, SEED, PLAIN, 160)
    tokens, asked = applied(task, table, lengths, 160, special)
    total = uid = 0
    for row, sizes in enumerate(lengths):
        expected = {}
        for number, size in enumerate(sizes):
            found = slow(task, made.uids[uid], size - 2 * special) if size > 2 * special else {}
            begin = sum(sizes[:number]) + special
            expected |= {begin + place: put_by(task, word) for place, word in found.items()}
            uid += 1
        hidden = asked.targets_BL[row] != IGNORED
        assert set(np.flatnonzero(hidden).tolist()) == expected.keys()
        assert torch.equal(asked.targets_BL[row][hidden], tokens[row][hidden])
        for place in range(160):
            put = expected.get(place, KEEP)
            assert asked.rows.tokens_BL[row, place] == (tokens[row, place] if put == KEEP else put)
        total += len(expected)
    assert task.counts(table, made, 160).sum() == total


def test_how_many_are_drawn_at_once_changes_nothing(monkeypatch):
    task, made = MaskedTokens(share=0.5), pieces([[9, 40], [3], [100]])
    table = task.draw(made, STREAM, SEED, PLAIN, 100)
    for few in (0, 7, 1000):
        monkeypatch.setattr(masked, "expected_draws", lambda sizes, counts, n=few: sizes * 0 + n)
        assert (task.draw(made, STREAM, SEED, PLAIN, 100) == table).all()


def test_all_subsets_are_alike_likely():
    """Of 6 tokens 2 are hidden: each of the 15 pairs as often."""
    made = pieces([[6]] * 6000)
    table = MaskedTokens(share=1 / 3).draw(made, STREAM, SEED, PLAIN, 6)
    found = [tuple(sorted(row)) for row in table[:, 0].tolist()]
    seen = [found.count(pair) for pair in combinations(range(6), 2)]
    assert sum(seen) == 6000
    assert stats.chisquare(seen).pvalue > 1e-3


def test_random_tokens_are_alike_likely_and_80_10_10_is_of_any_place():
    table = MaskedTokens(share=0.5).draw(pieces([[200]] * 1000), STREAM, SEED, PLAIN, 200)
    places, put = table[:, 0].ravel(), table[:, 1].ravel()
    there = put >= PLAIN.first
    assert stats.chisquare(np.bincount(put[there] - PLAIN.first, minlength=256)).pvalue > 1e-3
    kinds = np.select([put == PLAIN.mask, put == KEEP], [0, 1], 2)
    shares = np.bincount(kinds) / len(kinds)
    assert np.abs(shares - [0.8, 0.1, 0.1]).max() < 4 * np.sqrt(0.16 / len(kinds))
    halves = [np.bincount(kinds[(places < 100) == early]) for early in (True, False)]
    assert stats.chi2_contingency(halves).pvalue > 1e-3


def test_a_row_without_text_is_asked_for_nothing():
    task = MaskedTokens()
    table = task.draw(pieces([[2], [9]], special=True), STREAM, SEED, PLAIN, 9)
    assert table[0, 0].tolist() == [0]
    assert table[0, 1].tolist() == [NOTHING]
    tokens, asked = applied(task, table, [[2], [9]], 9, special=True)
    assert (asked.targets_BL[0] == IGNORED).all()
    assert torch.equal(asked.rows.tokens_BL[0], tokens[0])
    assert (asked.targets_BL[1] != IGNORED).sum() == 1


def test_a_bad_document_is_not_asked_for():
    """Nothing came of it, so its extent is 0; the one beside it is hidden as it would be."""
    task, whole = MaskedTokens(), pieces([[40, 40]])
    bad = replace(whole, totals=whole.totals * [0, 1])
    table, truth = (task.draw(some, STREAM, SEED, PLAIN, 80) for some in (bad, whole))
    tokens, documents = torch.full((1, 80), 50), torch.tensor([[-1] * 40 + [1] * 40])
    rows = LaidRows(tokens.clone(), torch.stack([documents, documents * 0]))
    asked = task.apply(rows, torch.from_numpy(table), PLAIN)
    hidden = asked.targets_BL[0] != IGNORED
    assert hidden[:40].sum() == 0
    assert hidden[40:].sum() == 6
    assert table[0].tolist() == truth[0, :, 6:].tolist()
    assert torch.equal(asked.rows.tokens_BL[0, :40], tokens[0, :40])
