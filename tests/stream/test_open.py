"""Packed sets as sources: one or a mixture of several, and what their batches end with."""

import json
import shutil

import numpy as np
import pytest
import torch

from sslpipe.errors import RecipeError, StateError
from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.shards import PackSettings, pack
from sslpipe.stream.open_source import parse_shards

from ..conftest import write_images
from ..streaming import damage, load, steps, trace

MIX = 'stream.mix={"photos": 0.7, "sketches": 0.3}'


@pytest.fixture(scope="module")
def sets(packed, tmp_path_factory):
    """45 photos of three classes and 20 sketches of two."""
    folder = tmp_path_factory.mktemp("sketches")
    write_images(folder / "sketch", 20, classes=2)
    pack(folder, folder / "out", PackSettings(codec=ImageCodec(), shard_bytes=20_000))
    return {"photos": packed, "sketches": folder / "out"}


@pytest.fixture(scope="module")
def photos(packed):
    with load(packed) as pipe:
        return {key for batch in steps(pipe, 6) for key in batch.keys}


def walk(sets, *overrides, count=30, **where):
    with load(sets, *overrides, **where) as pipe:
        return steps(pipe, count)


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_a_mixture_does_not_depend_on_the_ranks(sets, world_size):
    settings = (MIX, "stream.batch_size=12")
    want = trace(walk(sets, *settings))
    joined = [{} for _ in want]
    for rank in range(world_size):
        for whole, part in zip(
            joined, trace(walk(sets, *settings, rank=rank, world_size=world_size)), strict=True
        ):
            whole |= part
    assert joined == want


@pytest.mark.parametrize(
    "sampler", ["{ibot: {}}", "{multiblock: {part: context, mode: reference, min_keep: 1}}"]
)
def test_masks_that_hang_on_slots_are_those_of_the_whole_batch_after_a_resume_too(sets, sampler):
    """iBOT shares out ratios over the slots of a batch, and I-JEPA cuts masks to its shortest."""
    mask = f"masks.random={{view: global, patch_size: 4, sampler: {sampler}}}"
    settings = MIX, "stream.batch_size=12", mask
    whole = walk(sets, *settings, count=9)
    with load(sets, *settings) as pipe:
        steps(pipe, 5)
        state = pipe.state_dict()
    for rank in range(4):
        with load(sets, *settings, rank=rank, world_size=4) as pipe:
            pipe.load_state_dict(state)
            for mine, batch in zip(steps(pipe, 4), whole[5:], strict=True):
                slots = pipe.source.slots_at(mine.step)
                assert mine.keys == tuple(batch.keys[slot] for slot in slots)
                assert torch.equal(mine.masks["random"], batch.masks["random"][:, slots])
                assert torch.equal(mine.params["global"], batch.params["global"][:, slots])


def test_a_bad_sample_of_a_mixture_is_replaced_by_the_same_one_on_any_ranks(sets, tmp_path):
    spoiled = {name: tmp_path / name for name in sets}
    for name, folder in sets.items():
        shutil.copytree(folder, spoiled[name])
        damage(spoiled[name], 0, 1)
    settings = MIX, "stream.batch_size=12", "stream.max_bad_fraction=0.5"
    want, joined = trace(walk(spoiled, *settings)), [{} for _ in range(30)]
    for rank in range(3):
        part = trace(walk(spoiled, *settings, rank=rank, world_size=3))
        for whole, mine in zip(joined, part, strict=True):
            whole |= mine
    assert joined == want != trace(walk(sets, *settings))


def test_each_corpus_of_a_mixture_has_its_weight_and_epochs_of_its_own(sets, photos):
    batches = walk(sets, MIX, count=40)
    keys = [key for batch in batches for key in batch.keys]
    mine = [key for key in keys if key in photos]
    for step in range(1, 41):
        assert abs(sum(key in photos for key in keys[: step * 8]) - 0.7 * 8 * step) < 1
    others = [key for key in keys if key not in photos]
    # inside a batch slots are permuted, so look at whole batches around the end of an epoch
    assert set(mine[:60]) == photos
    counts = [others.count(key) for key in set(others)]
    assert len(counts) == 20
    assert max(counts) - min(counts) <= 1


def test_an_epoch_of_a_mixture_is_all_samples_and_without_weights_each_comes_once(sets):
    with load(sets) as pipe:
        assert len(pipe) == 65 // 8
    keys = [key for batch in walk(sets, "stream.batch_size=13", count=5) for key in batch.keys]
    assert len(set(keys)) == 65


def test_a_corpus_keeps_its_order_whatever_else_is_mixed_in(sets, packed):
    def places(shards, corpus):
        with load(shards, "stream.lanes=4") as pipe:
            located = pipe.source.corpora[corpus].locate(np.arange(135))
        return list(zip(located.shards.tolist(), located.rows.tolist(), strict=True))

    assert places(sets, 0) == places({"a": sets["sketches"], "photos": packed}, 1)
    twice = {"photos": packed, "same": packed}
    assert places(twice, 0) == places(sets, 0) != places(twice, 1)


def test_a_mixture_resumes_and_refuses_other_weights_names_and_sets(sets):
    with load(sets, MIX) as pipe:
        steps(pipe, 7)
        state = pipe.state_dict()
        rest = trace(steps(pipe, 9))
    assert len(json.dumps(state)) < 250
    with load(sets, MIX, rank=1, world_size=2) as pipe:
        assert {**pipe.state_dict(), "step": 7} == state
    with load(sets, MIX) as pipe:
        pipe.load_state_dict(state)
        assert trace(steps(pipe, 9)) == rest
    for shards, mix in (
        (sets, 'stream.mix={"photos": 0.6, "sketches": 0.4}'),
        ({"photos": sets["sketches"], "sketches": sets["photos"]}, MIX),
        (sets, "stream.mix=null"),
    ):
        with load(shards, mix) as pipe, pytest.raises(StateError, match="shards or their weights"):
            pipe.load_state_dict(state)


def test_labels_of_a_mixture_count_only_where_the_classes_are_the_same(sets, packed):
    assert all((batch.labels == -1).all() for batch in walk(sets, count=3))
    same = walk({"a": packed, "b": packed}, count=3)
    assert all(
        key.startswith(f"class{label}/")
        for batch in same
        for key, label in zip(batch.keys, batch.labels.tolist(), strict=True)
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ('stream.mix={"photos": 1, "paintings": 1}', "weighs paintings, photos, but photos, sk"),
        ("stream.remainder=pad", "a mixture goes on for ever"),
        ("stream.order=sequential", "a mixture goes on for ever"),
        ('stream.mix={"photos": 0, "sketches": 1}', "greater than 0"),
    ],
)
def test_mixtures_that_cannot_be(sets, override, message):
    with pytest.raises(RecipeError, match=message):
        load(sets, override)
    with pytest.raises(RecipeError, match="one without a name was given"):
        load(sets["photos"], MIX)


def test_shards_of_the_command_line(tmp_path):
    assert parse_shards(["shards/photos"]) == "shards/photos"
    assert parse_shards(["a=x/y", "b=s3://z"]) == {"a": "x/y", "b": "s3://z"}
    (tmp_path / "a=b").mkdir()
    assert parse_shards([str(tmp_path / "a=b")]) == str(tmp_path / "a=b")
    for words in (["x", "y"], ["a=x", "a=y"], ["a=x", "=y"], ["a=x", "b="]):
        with pytest.raises(RecipeError, match="need a name each"):
            parse_shards(words)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_padded_evaluation_sees_every_sample_once_on_every_number_of_ranks(packed, world_size):
    seen = []
    for rank in range(world_size):
        settings = ("stream.order=sequential", "stream.remainder=pad")
        with load(packed, *settings, rank=rank, world_size=world_size) as pipe:
            assert len(pipe) == 6
            for batch in pipe:
                assert len(batch.keys) == 8 // world_size
                seen += batch.uids[batch.valid].tolist()
    assert len(seen) == len(set(seen)) == 45


def test_a_short_last_batch_is_for_one_rank_and_drop_gives_whole_batches(packed):
    with pytest.raises(RecipeError, match=r"2 ranks would wait for each other; set .* pad"):
        load(packed, "stream.order=sequential", world_size=2)
    with load(packed, "stream.remainder=drop") as pipe:
        uids = torch.cat([batch.uids for batch in steps(pipe, 10)]).reshape(2, 40)
    assert [len(set(epoch.tolist())) for epoch in uids] == [40, 40]
    assert set(uids[0].tolist()) != set(uids[1].tolist())


@pytest.mark.parametrize(
    "override", ["stream.remainder=drop", "stream.order=global", "stream.window=2"]
)
def test_states_of_another_order_or_remainder_say_so(packed, override):
    with load(packed) as pipe:
        state = pipe.state_dict()
    with load(packed, override) as other, pytest.raises(StateError, match=r"its order .* go on"):
        other.load_state_dict(state)
