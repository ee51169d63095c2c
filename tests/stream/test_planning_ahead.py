"""Planning is done for many steps at once, and says the same as planning each step alone."""

from copy import copy

import numpy as np
import pytest

from sslpipe import permutations, rng
from sslpipe.stream import order
from sslpipe.stream.mixture import PLANNED, Mixture, StepsInARow
from sslpipe.stream.packed import Corpus
from sslpipe.stream.packed_mixture import PackedMixture
from sslpipe.stream.rank_split import RankSplit

SIZES = np.full(1000, 1281, dtype=np.int64)
KINDS = ("lanes", "global", "sequential")


def build(kind, sizes=SIZES):
    return order.build_order(sizes, kind=kind, seed=3, lanes=64, window=4)


def same(found, expected):
    return all(
        np.array_equal(getattr(found, name), getattr(expected, name))
        for name in ("epochs", "shards", "rows")
    )


@pytest.fixture
def generator_calls(monkeypatch):
    calls, drawn = [], rng.draw_blocks
    monkeypatch.setattr(
        rng, "draw_blocks", lambda *given, **named: calls.append(1) or drawn(*given, **named)
    )
    return calls


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [np.array([400, 300, 500]), SIZES], ids=["small", "large"])
def test_steps_in_a_row_are_those_asked_alone(kind, sizes):
    """Over ends of epochs, with a substitute now and then, and after jumps to and fro."""
    made, mine = build(kind, sizes), np.arange(5, 128, 4)
    steps = [*range(40), 20, 21, 22, 3, 1000, 1001, 1002, 1003, 4, 5]
    for step in steps:
        positions = step * 128 + mine
        assert same(made.locate(positions), build(kind, sizes).locate(positions))
        if step % 7 == 0:
            bad = positions[3:4] + made.stride
            assert same(made.locate(bad), build(kind, sizes).locate(bad))


@pytest.mark.parametrize("kind", KINDS)
def test_the_generator_is_called_for_many_steps_at_once(kind, generator_calls):
    made, mine = build(kind), np.arange(32)
    for step in range(64):
        made.locate(step * 2048 + mine)
    assert len(generator_calls) <= 64 + 2 * order.FEISTEL_ROUNDS  # lanes: one for each lane


def test_a_network_is_asked_once_for_many_steps(monkeypatch):
    asked, network = [], order.Global._network
    monkeypatch.setattr(order.Global, "_network", lambda *given: asked.append(1) or network(*given))
    made = build("global")
    for step in range(64):
        made.locate(step * 2048 + np.arange(32))
    assert len(asked) < 3 * 64  # 25 passes or so, thrice; alone, each step takes 10


def test_a_copy_is_for_another_thread():
    made = build("lanes")
    other = copy(made)
    assert other.line is not made.line
    assert same(made.locate(np.arange(99)), other.locate(np.arange(99)))


@pytest.mark.parametrize("world_size", [1, 8])
def test_a_mixture_is_split_for_many_steps_at_once(world_size, generator_calls, monkeypatch):
    """By one draw for all of them; a rank that has all slots takes whole batches as they are."""
    drawn, philox = [], rng.philox
    monkeypatch.setattr(rng, "philox", lambda *given: drawn.append(1) or philox(*given))
    plan = Mixture([7, 3], batch_size=64, seed=0, epoch_samples=1000)
    split = RankSplit(
        plan, samples=np.array([500, 400]), lanes=np.array([45, 19]), rank=world_size // 2,
        world_size=world_size,
    )  # fmt: skip
    found = split.picks(range(64))
    assert len(generator_calls) + len(drawn) <= 2
    for step in range(64):
        mine = slice(step * split.share, (step + 1) * split.share)
        alone = plan(step, split.at(step))
        assert np.array_equal(found.positions[mine], alone.positions)
        assert np.array_equal(found.corpora[mine], alone.corpora)


def test_keys_of_some_places_are_those_of_whole_permutations():
    given = {"seed": 4, "epochs": np.array([0, 7, 2**40]), "stream": "order/mix"}
    whole = permutations.permutation_keys(65, **given)
    places = np.random.default_rng(0).integers(0, 65, (3, 40))
    found = permutations.permutation_keys_at(places, **given)
    assert np.array_equal(found, np.take_along_axis(whole, places, -1))


def test_steps_in_a_row_are_found_together_and_others_alone():
    asked = []
    found = StepsInARow(lambda steps: asked.append(list(steps)) or [s * s for s in steps],
                        samples=PLANNED // 4)  # fmt: skip
    steps = [7, 3, 4, 5, 6, 7, 8, 2, 9, 10, 5]
    assert [found(step) for step in steps] == [step * step for step in steps]
    # 4 and 6 follow others and are the first that are not there; 2 and 5 are other steps
    assert asked == [[7], [3], [4, 5], [6, 7, 8, 9], [2], [10, 11], [5]]


def test_of_steps_found_together_only_the_first_may_be_told():
    asked = []
    found = StepsInARow(lambda steps: asked.append(list(steps)) or [steps[0]], samples=1)
    assert [found(step) for step in range(4)] == [0, 1, 2, 3]
    assert [steps[0] for steps in asked] == [0, 1, 2, 3]


class NoStore:
    """Of shards that nobody reads."""

    classes, bytes, room, fetched = (), 0, 0, np.zeros(1)


def mixed(kind):
    """Two sets, one of which leaves rows out; the third of eight ranks."""
    corpora = [
        Corpus(NoStore(), build(kind, sizes), fingerprint="", files=["a"] * len(sizes),
               excluded=gaps)
        for sizes, gaps in ((np.array([40, 30, 50]), {1: (0, 7)}), (SIZES, {}))
    ]  # fmt: skip
    plan = Mixture([1, 3], batch_size=64, seed=2, epoch_samples=1000)
    return PackedMixture(corpora, plan, rank=2, world_size=8, identity="")


@pytest.mark.parametrize("kind", KINDS)
def test_steps_of_a_mixture_in_a_row_are_those_asked_alone(kind):
    """Over ends of epochs and of what is found together, and after jumps to and fro."""
    made, ahead = mixed(kind), mixed(kind)
    shards_of = [ahead._shards_of(corpus) for corpus in range(2)]
    for step in [*range(1100), 3, 4, 5000, 5001, 2]:
        found = made.wants(step)
        for corpus in range(2):
            needed = found.shards[found.corpora == corpus]
            assert np.array_equal(shards_of[corpus](step), np.unique(needed))
        if step % 101 == 0 or step > 1050:
            alone = mixed(kind).wants(step)
            for name in ("corpora", "positions", "epochs", "shards", "rows", "valid"):
                assert np.array_equal(getattr(found, name), getattr(alone, name)), (step, name)
