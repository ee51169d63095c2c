"""Weighted mixing: counts that never stray by a sample, and no position lost or repeated."""

from fractions import Fraction

import numpy as np
import pytest

from sslpipe.errors import RecipeError
from sslpipe.stream import order
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
    rng = np.random.default_rng(0)
    for _ in range(40):
        turns = rng.integers(1, 60, rng.integers(2, 12)).tolist()
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


@pytest.mark.parametrize("world_size", [1, 2, 3, 8, 12, 24])
def test_ranks_split_a_mixed_batch_and_any_step_is_found_without_the_others(world_size):
    whole = Mixture([7, 3], batch_size=24, seed=5, epoch_samples=100)
    for step in (0, 1, 17, 10**6):
        fresh = Mixture([7, 3], batch_size=24, seed=5, epoch_samples=100)
        parts = [
            fresh(step, order.slots(batch_size=24, lanes=1, rank=rank, world_size=world_size))
            for rank in range(world_size)
        ]
        joined = np.concatenate([np.stack([p.corpora, p.positions]) for p in parts], axis=1)
        want = whole(step, np.arange(24))
        assert (joined == np.stack([want.corpora, want.positions])).all()


def test_a_rank_gets_of_every_corpus_over_time():
    made = Mixture([1, 1], batch_size=2, seed=0, epoch_samples=100)
    first = np.concatenate([made(step, np.array([0])).corpora for step in range(200)])
    assert 60 < first.sum() < 140


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
