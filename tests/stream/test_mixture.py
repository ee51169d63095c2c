"""Weighted mixing: counts that never stray by a sample, and no position lost or repeated."""

from fractions import Fraction

import numpy as np
import pytest

from sslpipe import rng
from sslpipe.errors import RecipeError
from sslpipe.stream.mixture import PARTS, Mixture, calendar, turns_of

MIXES = [[7, 3], [1, 1], [1, 99], [1, 1, 1, 1, 1], [333, 667], [1, 2, 3, 5, 8, 500], [5000, 1], [4]]


@pytest.mark.parametrize("turns", MIXES, ids=str)
def test_after_any_slot_every_corpus_is_within_one_sample_of_its_weight(turns):
    whose = np.tile(calendar(turns), 3)
    for corpus, n in enumerate(turns):
        had = np.cumsum(whose == corpus)
        slots = np.arange(1, len(whose) + 1)
        # exact integers: |had - n / D * slots| < 1
        assert (abs(had * sum(turns) - n * slots) < sum(turns)).all()


def test_random_mixtures_keep_within_one_too():
    random = np.random.default_rng(0)
    for _ in range(40):
        turns = random.integers(1, 60, random.integers(2, 12)).tolist()
        whose, total = calendar(turns), sum(turns)
        for corpus, n in enumerate(turns):
            had = np.cumsum(whose == corpus)
            assert (abs(had * total - n * np.arange(1, total + 1)) < total).all()


@pytest.mark.parametrize("turns", [[7, 3], [1, 99], [3, 1, 1]], ids=str)
def test_each_corpus_is_walked_along_without_gaps_in_any_batch(turns):
    size = 24
    made = Mixture(turns, batch_size=size, seed=5, epoch_samples=100)
    cursors = [0] * len(turns)
    for step in range(60):
        picks = made(step, np.arange(size))
        assert picks.valid.all()
        for corpus in range(len(turns)):
            mine = np.sort(picks.positions[picks.corpora == corpus])
            assert (mine == cursors[corpus] + np.arange(len(mine))).all()
            cursors[corpus] += len(mine)
            share = turns[corpus] / sum(turns)
            assert abs(cursors[corpus] - share * (step + 1) * size) < 1


@pytest.mark.parametrize(("turns", "size"), [([7, 3], 24), ([333, 667], 64), ([1, 1, 5], 1)])
def test_a_batch_is_a_part_of_the_calendar_permuted_by_keyed_words(turns, size):
    """The global batches, sample by sample: whatever splits them among ranks must not move them."""
    whose = calendar(turns).tolist()
    made = Mixture(turns, batch_size=size, seed=5, epoch_samples=100)
    for step in (0, 1, 17, 10**6):
        drawn = rng.words(2 * size, seed=5, epoch=step, stream="order/mix", ids=0).tolist()
        words = [(drawn[2 * place] << 32) + drawn[2 * place + 1] for place in range(size)]
        places = [step * size + place for place in sorted(range(size), key=words.__getitem__)]
        had = [place // len(whose) * turns[whose[place % len(whose)]] for place in places]
        inside = [whose[: place % len(whose)].count(whose[place % len(whose)]) for place in places]
        picks = made(step, np.arange(size))
        assert picks.corpora.tolist() == [whose[place % len(whose)] for place in places]
        assert picks.positions.tolist() == np.add(had, inside).tolist()
        some = np.array([size - 1, 0, size // 2])
        assert made(step, some).positions.tolist() == picks.positions[some].tolist()


@pytest.mark.parametrize("turns", MIXES, ids=str)
def test_where_a_sample_stands_in_the_calendar_is_told_both_ways(turns):
    made, total = Mixture(turns, batch_size=1, seed=0, epoch_samples=1), 3 * sum(turns)
    whose = np.tile(calendar(turns), 3)
    counts = (whose[:, None] == np.arange(len(turns))).cumsum(0)
    positions = counts[np.arange(total), whose] - 1
    assert (made.places(whose, positions) == np.arange(total)).all()
    some = np.arange(len(turns))[::-2]
    assert (made.had(np.arange(1, total + 1)[None], some)[0] == counts[:, some]).all()


def test_weights_become_turns_in_their_exact_proportion():
    assert turns_of({"a": 0.7, "b": 0.3}) == [7, 3]
    assert turns_of({"a": 2, "b": 1, "c": 1}) == [2, 1, 1]
    assert turns_of({"a": 45.0, "b": 72.0}) == [5, 8]
    assert turns_of({"only": 3.5}) == [1]


def test_weights_of_huge_denominators_are_rounded_to_65536_parts():
    weights = {"a": 1_281_167.0, "b": 14_197_122.0, "c": 99_991.0}
    turns = turns_of(weights)
    assert sum(turns) == PARTS
    for turn, weight in zip(turns, weights.values(), strict=True):
        assert abs(Fraction(turn, PARTS) - Fraction(weight) / Fraction(sum(weights.values()))) < (
            Fraction(1, PARTS)
        )
    with pytest.raises(RecipeError, match=r"'tiny' has a share of 1e-08, less than 1 of 65,536"):
        turns_of({"huge": 1e9, "tiny": 10.0})
