"""Remainders and ranks: what stands in a batch, exactly, at every size and in every epoch."""

import numpy as np
import pytest

from sslpipe import load
from sslpipe.errors import RecipeError
from sslpipe.recipe import parse_recipe
from sslpipe.stream import order
from sslpipe.stream.plan import Single

from ..conftest import RECIPE

SIZES = [(45, 8), (40, 8), (47, 48), (7, 16), (100, 96)]


def plan(samples, size, remainder="wrap", epoch_samples=None):
    return Single(samples, batch_size=size, remainder=remainder, epoch_samples=epoch_samples)


def batches(made, size, count):
    return [made(step, np.arange(size)) for step in range(count)]


@pytest.mark.parametrize(("samples", "size"), SIZES)
def test_wrap_leaves_no_position_out_and_repeats_none(samples, size):
    made = plan(samples, size)
    assert len(made) == max(1, samples // size)
    positions = np.concatenate([batch.positions for batch in batches(made, size, 40)])
    assert (positions == np.arange(40 * size)).all()
    assert all(batch.valid.all() for batch in batches(made, size, 3))


@pytest.mark.parametrize(("samples", "size"), [(45, 8), (40, 8), (100, 96)])
def test_drop_begins_every_epoch_with_a_batch_and_leaves_the_tail_out(samples, size):
    made = plan(samples, size, "drop")
    assert len(made) == samples // size
    stream = batches(made, size, 3 * len(made))
    positions = np.concatenate([batch.positions for batch in stream])
    used = samples // size * size
    for epoch in range(3):
        want = epoch * samples + np.arange(used)
        assert (positions[epoch * used : (epoch + 1) * used] == want).all()
    assert all(batch.valid.all() for batch in stream)


@pytest.mark.parametrize(("samples", "size"), SIZES)
def test_pad_is_every_position_once_valid_and_repeats_of_its_own_epoch(samples, size):
    made = plan(samples, size, "pad")
    assert len(made) == -(-samples // size)
    stream = batches(made, size, 2 * len(made))
    for epoch in range(2):
        mine = stream[epoch * len(made) : (epoch + 1) * len(made)]
        positions = np.concatenate([batch.positions for batch in mine])
        valid = np.concatenate([batch.valid for batch in mine])
        assert len(positions) == len(made) * size
        assert (positions[valid] == epoch * samples + np.arange(samples)).all()
        assert (positions // samples == epoch).all()


def test_short_ends_every_epoch_with_what_is_left():
    made = plan(45, 8, "short")
    assert [len(batch.positions) for batch in batches(made, 8, 12)] == [8, 8, 8, 8, 8, 5] * 2
    assert (made(6, np.arange(8)).positions == 45 + np.arange(8)).all()


def test_an_epoch_may_be_called_another_length():
    assert len(plan(45, 8, epoch_samples=24)) == 3
    assert len(plan(45, 8, epoch_samples=3)) == 1
    with pytest.raises(RecipeError, match=r"epoch_samples = 24: .*remainder = 'pad'"):
        plan(45, 8, "pad", epoch_samples=24)
    with pytest.raises(RecipeError, match="5 samples do not fill one batch of 8"):
        plan(5, 8, "drop")


@pytest.mark.parametrize("remainder", ["wrap", "drop", "pad"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5, 6, 12, 15, 60])
@pytest.mark.parametrize("lanes", [1, 4, 5, 20, 60])
def test_ranks_share_every_batch_equally_whether_or_not_they_divide_the_lanes(
    remainder, world_size, lanes
):
    made = plan(1000, 60, remainder)
    shares = [
        order.slots(batch_size=60, lanes=lanes, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert {len(share) for share in shares} == {60 // world_size}
    assert (np.sort(np.concatenate(shares)) == np.arange(60)).all()
    for step in range(2 * len(made)):
        whole = made(step, np.arange(60))
        for share in shares:
            part = made(step, share)
            assert (part.positions == whole.positions[share]).all()
            assert (part.valid == whole.valid[share]).all()


@pytest.mark.parametrize("world_size", [1, 2, 4, 5, 10, 20])
def test_ranks_that_divide_the_lanes_keep_to_their_own(world_size):
    seen = []
    for rank in range(world_size):
        share = order.slots(batch_size=60, lanes=20, rank=rank, world_size=world_size)
        seen.append(set((share % 20).tolist()))
    assert sum(len(lanes) for lanes in seen) == 20
    assert set.union(*seen) == set(range(20))


@pytest.mark.parametrize(
    ("world_size", "lanes_each", "sharing"), [(60, 1, 3), (12, 5, 3), (15, 4, 3)]
)
def test_ranks_that_do_not_divide_the_lanes_share_few_with_those_beside_them(
    world_size, lanes_each, sharing
):
    walked = [
        set((order.slots(batch_size=60, lanes=20, rank=rank, world_size=world_size) % 20).tolist())
        for rank in range(world_size)
    ]
    for first in range(0, world_size, sharing):  # neighbours, which a node holds together
        assert len(set.union(*walked[first : first + sharing])) == lanes_each
    assert set.union(*walked) == set(range(20))


def counted(recipe_sets, packed):
    """Samples that stand in a batch more than once, for each batch of six epochs; and the words."""
    recipe = parse_recipe(RECIPE, overrides=recipe_sets)
    with load(recipe, shards=packed, device="cpu", rank=0, world_size=1) as pipe:
        places = [pipe.source.picks(step) for step in range(6 * len(pipe))]
        order = pipe.source.corpora[0].order
        found = []
        for picks in places:
            at = order.locate(picks.positions)
            rows = np.stack([at.shards, at.rows])[:, picks.valid]
            found.append(rows.shape[1] - np.unique(rows, axis=1).shape[1])
    return found


def test_a_batch_that_straddles_epochs_holds_some_samples_twice_and_that_is_told(packed, caplog):
    """45 samples by 32: of t from one epoch and h from the next, t * h / 45 stand twice."""
    twice = counted(["stream.batch_size=32"], packed)
    assert twice[0] == 0
    assert 0 < max(twice) <= 13
    (told,) = [record.getMessage() for record in caplog.records]
    assert "stream.batch_size = 32 does not divide the 45 samples" in told
    assert "holds up to about 6 of them twice; choose a divisor" in told


@pytest.mark.parametrize(
    "sets",
    [["batch_size=15"], ["batch_size=32", "remainder=drop"], ["batch_size=32", "remainder=pad"],
     ["batch_size=45"]],
    ids=str,
)  # fmt: skip
def test_a_batch_inside_an_epoch_holds_every_sample_once(packed, caplog, sets):
    assert not any(counted([f"stream.{each}" for each in sets], packed))
    assert not caplog.records


def test_who_insists_on_repeats_is_told_nothing(packed, caplog):
    twice = counted(["stream.batch_size=90", "stream.allow_repeats=true"], packed)
    assert twice == [45] * 6
    assert not caplog.records
