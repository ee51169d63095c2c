"""Ranks split a mixed batch: each sample once, each set in its weight, few lanes on each node."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from sslpipe import permutations
from sslpipe.stream.lane_order import LaneOrder
from sslpipe.stream.mixture import Mixture
from sslpipe.stream.rank_split import RankSplit


def reversed_bits(number, bits):
    return int(f"{number:0{bits}b}"[::-1], 2) if bits else 0


def test_the_order_of_lanes_is_that_of_a_sort():
    """Over ends of epochs, several in a span too, and with more lanes than samples."""
    random = np.random.default_rng(0)
    for _ in range(200):
        first, last, samples, lanes, wanted = [], [], [], [], []
        for stream in range(3):
            size, count = int(random.integers(1, 200)), int(random.integers(1, 40))
            begin, length = int(random.integers(1000)), int(random.integers(1, 150))
            positions = np.arange(begin, begin + length)
            lane = positions % size % count
            bits = (count - 1).bit_length()
            keys = [reversed_bits(each, bits) for each in lane.tolist()]
            order = np.lexsort((positions, keys))
            wanted += [(number, stream, each) for number, each in enumerate(positions[order])]
            first, last = [*first, begin], [*last, begin + length]
            samples, lanes = [*samples, size], [*lanes, count]
        made = LaneOrder(
            np.array(first), np.array(last), samples=np.array(samples), lanes=np.array(lanes)
        )
        numbers, streams, positions = np.array(wanted)[random.permutation(len(wanted))].T
        assert (made.positions(numbers, streams) == positions).all()


class Trial:
    """A random mixture, and ranks of it; sets of fewer samples than a batch has, and others."""

    def __init__(self, seed):
        random = np.random.default_rng(seed)
        corpora, self.world = int(random.integers(1, 6)), int(random.integers(2, 13))
        self.turns = random.integers(1, 40, corpora).tolist()
        self.size = self.world * int(random.integers(1, 150))
        self.plan = Mixture(self.turns, batch_size=self.size, seed=seed, epoch_samples=100)
        self.means = np.array(self.turns) * self.size / sum(self.turns)  # samples of each a batch
        self.lanes = np.full(corpora, random.integers(1, 300))
        if seed % 2:  # as many as a mixture has by itself
            self.lanes = np.clip(np.round(self.means).astype(np.int64), 1, 256)
        self.samples = random.integers(1, 40 * self.size, corpora)

    def splits(self, world=None):
        world = world or self.world
        return [
            RankSplit(self.plan, samples=self.samples, lanes=self.lanes, rank=r, world_size=world)
            for r in range(world)
        ]


TRIALS = range(24)


@pytest.mark.parametrize("seed", TRIALS)
def test_ranks_have_each_slot_of_a_batch_once_and_any_step_is_found_alone(seed):
    trial = Trial(seed)
    steps = [0, 1, 2, 17, 10**6]
    for world in {1, trial.world, trial.size if trial.size < 100 else 1}:
        found = {step: [] for step in steps}
        for split in trial.splits(world):
            picks = split.picks(steps)
            assert len(picks.valid) == len(steps) * split.share
            assert picks.valid.all()
            for number, step in enumerate(steps):
                slots = split.at(step)
                mine = slice(number * split.share, (number + 1) * split.share)
                truth = trial.plan(step, slots)
                assert (picks.corpora[mine] == truth.corpora).all()
                assert (picks.positions[mine] == truth.positions).all()
                assert (np.diff(slots) > 0).all()
                found[step].extend(slots.tolist())
        assert all(sorted(slots) == list(range(trial.size)) for slots in found.values())


@pytest.mark.parametrize("seed", TRIALS)
def test_a_rank_has_of_each_set_within_four_of_its_share_in_every_step(seed):
    trial = Trial(seed)
    for split in trial.splits():
        corpora = split.picks(range(50)).corpora.reshape(50, split.share)
        for corpus, turns in enumerate(trial.turns):
            share = Fraction(turns * split.share, sum(trial.turns))
            assert all(abs(int(n) - share) < 4 for n in (corpora == corpus).sum(1))


@pytest.mark.parametrize("turns", [[1, 1], [1, 7], [3, 2, 1]], ids=str)
def test_a_rank_gets_exactly_its_share_in_the_mean_of_sets_with_less_than_a_sample(turns):
    """Where the calendar comes round with the batch, all batches have its samples at one place."""
    size, steps = sum(turns), 4000
    plan = Mixture(turns, batch_size=size, seed=0, epoch_samples=100)
    many = np.full(len(turns), 10**6), np.ones(len(turns), dtype=np.int64)
    for rank in range(size):
        split = RankSplit(plan, samples=many[0], lanes=many[1], rank=rank, world_size=size)
        counts = np.bincount(split.picks(range(steps)).corpora, minlength=len(turns))
        means = np.array(turns) * steps / size
        assert (abs(counts - means) < 5 * np.sqrt(means)).all()


@pytest.mark.parametrize("seed", TRIALS)
def test_a_node_walks_its_share_of_lanes_and_few_more(seed):
    """Two at the ends of its part, and those of six samples more: of sets with one or more a step.

    In the order of their numbers it would be up to a quarter of all lanes; at any place, all.
    """
    trial = Trial(seed)
    for split in trial.splits():
        picks = split.picks(range(80))
        for corpus, mean in enumerate(trial.means):
            place = picks.positions[picks.corpora == corpus] % trial.samples[corpus]
            lanes = trial.lanes[corpus]
            walked = len(np.unique(place % lanes))
            assert mean < 1 or walked <= lanes / trial.world + 2 + 6 * lanes / mean


def test_eight_nodes_of_64_ranks_walk_along_few_lanes_more_than_their_share():
    """The figures of pipelines/SCALE.md's kind: of 3 x 64 lanes, 24 are an eighth."""
    plan = Mixture([6, 3, 1], batch_size=4096, seed=0, epoch_samples=10**6)
    many, lanes = np.full(3, 10**7), np.full(3, 64)
    for node in range(8):
        walked = set()
        for rank in range(8 * node, 8 * node + 8):
            split = RankSplit(plan, samples=many, lanes=lanes, rank=rank, world_size=64)
            picks = split.picks(range(200))
            assert np.bincount(picks.corpora).tolist() == pytest.approx(
                [7680, 3840, 1280], rel=0.02
            )
            walked.update(zip(picks.corpora.tolist(), (picks.positions % 64).tolist(), strict=True))
        assert len(walked) <= 30


def test_samples_of_one_set_are_those_that_a_rank_has_of_it():
    trial = Trial(7)
    steps = [3, 4, 5, 99]
    for split in trial.splits():
        picks = split.picks(steps)
        for corpus in range(len(trial.turns)):
            found = split.positions(steps, corpus)
            cuts = pairwise(range(0, len(picks.valid) + 1, split.share))
            for alone, (start, end) in zip(found, cuts, strict=True):
                here = picks.corpora[start:end] == corpus
                assert np.sort(alone).tolist() == np.sort(picks.positions[start:end][here]).tolist()


def test_equal_words_put_the_first_place_first(monkeypatch):
    """Ranks agree on slots then, too: 16 words among many places."""
    for name in ("permutation_keys", "permutation_keys_at"):
        drawn = getattr(permutations, name)

        def few(*told, drawn=drawn, **words):
            return drawn(*told, **words) >> np.uint64(60)

        monkeypatch.setattr(permutations, name, few)
    test_ranks_have_each_slot_of_a_batch_once_and_any_step_is_found_alone(9)
