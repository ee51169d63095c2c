"""The order: permutations, and that the world's size and the place of a resume change nothing."""

import numpy as np
import pytest

from sslpipe.errors import RecipeError
from sslpipe.stream import order
from sslpipe.stream.lanes import distinct_numbers

SIZES = np.random.default_rng(0).integers(5, 60, 97).astype(np.int64)  # 97 uneven shards
N = int(SIZES.sum())
STARTS = np.concatenate([[0], np.cumsum(SIZES)])


def build(kind="lanes", *, sizes=SIZES, seed=3, batch_size=64, lanes=None, window=4):
    lanes = order.lanes_of(lanes, batch_size, "r.yaml:2")
    return order.build_order(sizes, kind=kind, seed=seed, lanes=lanes, window=window)


def owned(step, *, batch_size, lanes, rank, world_size):
    """Positions of a rank's share of a batch, where epochs wrap."""
    return step * batch_size + order.slots(
        batch_size=batch_size, lanes=lanes, rank=rank, world_size=world_size
    )


def samples(made, positions):
    """Sample numbers in packed order."""
    located = made.locate(positions)
    assert (located.rows < SIZES[located.shards]).all()
    assert (located.rows >= 0).all()
    return STARTS[located.shards] + located.rows


@pytest.mark.parametrize("shape", [0, 1, 500, (20, 30)])
def test_distinct_numbers_are_those_of_numpy(shape):
    numbers = np.random.default_rng(0).integers(-40, 40, shape)
    before = numbers.copy()
    found = distinct_numbers(numbers)
    assert found.dtype == numbers.dtype
    assert found.tolist() == np.unique(numbers).tolist()
    assert (numbers == before).all()


@pytest.mark.parametrize(("kind", "lanes"), [("lanes", None), ("lanes", 1), ("global", None)])
def test_every_epoch_is_a_permutation_of_its_own(kind, lanes):
    stream = samples(build(kind, lanes=lanes), np.arange(3 * N)).reshape(3, N)
    for epoch in stream:
        assert (np.sort(epoch) == np.arange(N)).all()
    assert (stream[0] == stream[1]).mean() < 0.02
    assert (samples(build(kind, lanes=lanes, seed=4), np.arange(N)) == stream[0]).mean() < 0.02


def test_sequential_is_the_packed_order():
    assert (samples(build("sequential"), np.arange(N)) == np.arange(N)).all()


@pytest.mark.parametrize("kind", ["lanes", "global"])
@pytest.mark.parametrize("world_size", [1, 2, 4, 8, 16, 64, 3, 6])
def test_global_batches_do_not_depend_on_the_number_of_ranks(kind, world_size):
    batch_size = 192  # 3 and 6 ranks do not divide the 64 lanes: some share them
    made = build(kind, batch_size=batch_size, lanes=64 if kind == "lanes" else None)
    whole = samples(made, np.arange(40 * batch_size)).reshape(40, batch_size)  # over an epoch's end
    sizes = {"batch_size": batch_size, "lanes": made.stride, "world_size": world_size}
    shares = [
        np.stack([owned(step, rank=rank, **sizes) for step in range(40)])
        for rank in range(world_size)
    ]
    assert {share.shape for share in shares} == {(40, batch_size // world_size)}
    found = [samples(made, share.ravel()).reshape(share.shape) for share in shares]
    together = np.sort(np.concatenate(found, axis=1), axis=1)
    assert (together == np.sort(whole, axis=1)).all()


def test_a_rank_keeps_to_its_own_lanes_and_so_to_few_shards():
    made = build(lanes=64)
    steps = range(N // 64)
    rank = [owned(s, batch_size=64, lanes=64, rank=0, world_size=8) for s in steps]
    touched = np.unique(made.locate(np.concatenate(rank)).shards)
    assert len(touched) <= len(SIZES) // 8 + 2


@pytest.mark.parametrize("kind", ["lanes", "global"])
def test_any_position_is_found_without_what_came_before(kind):
    stream = samples(build(kind), np.arange(3 * N))
    picks = np.random.default_rng(1).integers(0, 3 * N, (20, 50))
    for positions in picks:
        assert (samples(build(kind), positions) == stream[positions]).all()


def test_windows_bound_what_must_be_at_hand():
    made = build(lanes=4, window=2)
    located = made.locate(np.arange(N // 2))
    lane = located.shards[np.arange(N // 2) % 4 == 0]
    mean = N / len(SIZES)
    for start in range(0, len(lane) - 20, 20):  # 20 samples of a lane span few shards
        assert len(np.unique(lane[start : start + 20])) <= 2 * 2 + 60 / mean + 2


def test_lanes_mix_shards_in_every_batch():
    located = build(batch_size=64).locate(np.arange(64 * 20))
    mixed = [len(np.unique(batch)) for batch in located.shards.reshape(20, 64)]
    assert min(mixed) >= 40


def test_fewer_samples_than_a_batch_wrap_around():
    sizes = np.array([3, 4], dtype=np.int64)
    made = build(sizes=sizes, seed=0, batch_size=16)
    located = made.locate(np.arange(70))
    numbers = np.array([0, 3])[located.shards] + located.rows
    for epoch in numbers.reshape(10, 7):
        assert (np.sort(epoch) == np.arange(7)).all()


def test_planning_a_billion_samples_needs_little_memory():
    import tracemalloc

    sizes = np.full(100_000, 10_000, dtype=np.int64)
    tracemalloc.start()
    made = build(sizes=sizes, batch_size=1024, lanes=256)
    for rank_step in range(3):
        made.locate(owned(rank_step, batch_size=1024, lanes=256, rank=0, world_size=8))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * 2**20


def test_any_batch_of_a_billion_samples_is_planned_alone_exactly_and_in_little_memory():
    import tracemalloc

    sizes = np.full(100_000, 10_000, dtype=np.int64)
    share = order.slots(batch_size=4096, lanes=256, rank=3, world_size=8)
    steps = np.random.default_rng(2).integers(0, 10**9 // 4096, 3)
    made = build(sizes=sizes, batch_size=4096)
    tracemalloc.start()
    found = [made.locate(step * 4096 + share) for step in steps]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * 2**20
    numbers = np.concatenate([batch.shards * 10_000 + batch.rows for batch in found])
    assert len(np.unique(numbers)) == 3 * 512  # all in epoch 0: nothing comes twice
    again = build(sizes=sizes, batch_size=4096).locate(steps[2] * 4096 + share)
    assert (again.shards == found[2].shards).all()
    assert (again.rows == found[2].rows).all()


def test_lanes_must_divide_the_batch():
    with pytest.raises(RecipeError, match="lanes = 48 does not divide"):
        build(lanes=48)
    assert order.default_lanes(1024) == 256
    assert order.default_lanes(96) == 96
