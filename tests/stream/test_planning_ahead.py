"""Planning is done for many steps at once, and says the same as planning each step alone."""

from copy import copy

import numpy as np
import pytest

from sslpipe import permutations, rng
from sslpipe.stream import order
from sslpipe.stream.mixture import Mixture, StepsInARow
from sslpipe.stream.packed import Corpus, Packed

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
    calls, philox = [], rng.philox
    monkeypatch.setattr(rng, "philox", lambda *given: calls.append(1) or philox(*given))
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


def test_a_mixture_permutes_many_steps_at_once(generator_calls):
    mixture = Mixture([7, 3], batch_size=64, seed=0, epoch_samples=1000)
    alone = [
        Mixture([7, 3], batch_size=64, seed=0, epoch_samples=1000)(step, np.arange(9))
        for step in (*range(64), 7, 500)
    ]
    generator_calls.clear()
    for step, expected in zip((*range(64), 7, 500), alone, strict=True):
        found = mixture(step, np.arange(9))
        assert np.array_equal(found.positions, expected.positions)
        assert np.array_equal(found.corpora, expected.corpora)
    assert len(generator_calls) <= 3


def test_a_rank_sorts_only_its_places_of_a_permutation(monkeypatch):
    """And finds what the whole permutation says, where words are equal too."""
    given = {"seed": 4, "epochs": np.arange(5), "stream": "order/mix"}

    def check(n):
        whole = permutations.permutations(n, **given)
        for places in (
            np.arange(n),
            np.arange(n // 4, n // 2),
            np.array([n - 1]),
            np.array([3, 1]),
        ):
            found = permutations.permuted_places(n, places, **given)
            assert np.array_equal(found, whole[:, places])
        return whole

    distinct = check(64)
    drawn = permutations.permutation_keys
    monkeypatch.setattr(
        permutations,
        "permutation_keys",
        lambda *told, **words: drawn(*told, **words) >> np.uint64(60),
    )
    assert not np.array_equal(check(64), distinct)  # 16 words among 64: many are equal


def test_steps_in_a_row_are_found_together_and_others_alone():
    asked = []
    found = StepsInARow(lambda steps: asked.append(list(steps)) or [s * s for s in steps],
                        most=4)  # fmt: skip
    steps = [7, 3, 4, 5, 6, 7, 8, 9, 10, 2, 11, 12, 5]
    assert [found(step) for step in steps] == [step * step for step in steps]
    # 6 follows 5 and is the first that is not there, so does 10 follow 9; 2 and 5 are other steps
    assert asked == [[7], [3], [4, 5], [6, 7, 8, 9], [10, 11, 12, 13], [2], [5]]


class NoStore:
    """Of shards that nobody reads."""

    classes, bytes, room, fetched = (), 0, 0, np.zeros(1)


def mixed(kind):
    """Two sets, one of which leaves rows out; 8 of 64 slots."""
    corpora = [
        Corpus(NoStore(), build(kind, sizes), fingerprint="", files=["a"] * len(sizes),
               excluded=gaps)
        for sizes, gaps in ((np.array([40, 30, 50]), {1: (0, 7)}), (SIZES, {}))
    ]  # fmt: skip
    plan = Mixture([1, 3], batch_size=64, seed=2, epoch_samples=1000)
    return Packed(corpora, plan, np.arange(16, 24), identity="")


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
