"""What `load(shards=...)` takes: one set, a mixture of several, and anybody's iterable."""

import gc
import json
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest
import torch
import webdataset as wds

from sslpipe.errors import RecipeError, SampleError, ShardError, StateError
from sslpipe.image.codec import ImageCodec
from sslpipe.shards import open_manifest, pack
from sslpipe.sources import parse_shards

from .conftest import write_images
from .streaming import load, steps, trace

MIX = 'stream.mix={"photos": 0.7, "sketches": 0.3}'


@pytest.fixture(scope="module")
def sets(packed, tmp_path_factory):
    """45 photos of three classes and 20 sketches of two."""
    folder = tmp_path_factory.mktemp("sketches")
    write_images(folder / "sketch", 20, classes=2)
    pack(folder, folder / "out", codec=ImageCodec(), shard_bytes=20_000)
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


def test_a_corpus_keeps_its_order_whatever_else_is_mixed_in(sets, packed, photos):
    def order(shards, *overrides):
        batches = walk(shards, *overrides, "stream.lanes=4", "stream.batch_size=40", count=9)
        return [[uid for uid, key in zip(b.uids.tolist(), b.keys, strict=True) if key in photos]
                for b in batches]  # fmt: skip

    alone = [uid for batch in order({"photos": packed}) for uid in sorted(batch)]
    mixed = [uid for batch in order(sets, MIX) for uid in batch]
    assert set(mixed[:45]) == set(alone[:45])  # 28 of 40: the second batch begins a new epoch
    half = {uid for batch in order({"photos": packed})[:1] for uid in batch}
    assert set(order(sets, MIX)[0]) <= half


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
    with pytest.raises(RecipeError, match="2 ranks would wait for each other; set .* pad"):
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


def tars(folder):
    manifest = open_manifest(folder)
    return [str(manifest.tar(shard)) for shard in manifest.shards]


@pytest.fixture
def open_files():
    """webdataset leaves its files open."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()


def dataset(folder):
    return wds.WebDataset(tars(folder), shardshuffle=False)


def pipeline(folder):
    return wds.DataPipeline(
        wds.SimpleShardList(tars(folder)), wds.tarfile_to_samples(), wds.rename(jpg="jpg;jpeg")
    )


def piped(folder):
    return wds.WebDataset([f"pipe:cat {path}" for path in tars(folder)], shardshuffle=False)


def dicts(folder):
    return [dict(sample) for sample in dataset(folder)]


@pytest.mark.usefixtures("open_files")
@pytest.mark.parametrize("make", [dataset, pipeline, piped, dicts])
def test_foreign_samples_get_the_views_that_packed_ones_get(sample, make):
    settings = ("stream.order=sequential", "stream.remainder=wrap", "stream.epoch_samples=72")
    own = walk(sample, *settings, count=9)
    theirs = walk(make(sample), *settings, count=9)
    assert [b.keys for b in theirs] == [b.keys for b in own]
    for a, b in zip(own, theirs, strict=True):
        assert torch.equal(a.views["global"], b.views["global"])
        assert torch.equal(a.labels, b.labels)
    assert trace(walk(make(sample), *settings, count=18)[9:]) == trace(
        walk(sample, *settings, count=18)[9:]
    )


@pytest.mark.usefixtures("open_files")
def test_a_foreign_state_never_pretends(packed, caplog):
    samples = dicts(packed)
    with load(samples) as pipe:
        assert len(pipe) == 5
        steps(pipe, 7)
        state = pipe.state_dict()
    assert (state["exact"], state["elastic"], state["step"]) == (False, False, 7)
    with load(packed) as pipe:
        exact = pipe.state_dict()
        assert (exact["exact"], exact["elastic"]) == (True, True)
        with pytest.raises(StateError, match="its shards"):
            pipe.load_state_dict(state)
    with load(samples) as pipe:
        pipe.load_state_dict(state)
        assert "starts anew" in caplog.text
        batch = next(iter(pipe))
    assert (batch.step, batch.epoch) == (7, 1)
    assert list(batch.keys) == [sample["__key__"] for sample in samples[:8]]


def test_a_pipeline_that_never_ends_has_new_views_of_a_sample_in_every_epoch(packed):
    once = dicts(packed)[:8]
    batches = walk((once * 1000), "stream.epoch_samples=8", count=4)
    assert [batch.epoch for batch in batches] == [0, 1, 2, 3]
    assert len({batch.params["global"][:, 0].numpy().tobytes() for batch in batches}) == 4


def test_a_key_that_comes_twice_in_an_epoch_gets_the_same_views(packed):
    batch = walk([dicts(packed)[0]] * 8, count=1)[0]
    assert torch.equal(batch.views["global"][:, 0], batch.views["global"][:, 7])


def test_each_rank_takes_what_its_own_iterable_gives(packed):
    samples = dicts(packed)
    for rank in range(2):
        where = {"rank": rank, "world_size": 2}
        with pytest.raises(RecipeError, match="of this rank only; set stream.epoch_samples"):
            load(samples[rank::2], **where)
        with load(samples[rank::2], "stream.epoch_samples=45", **where) as pipe:
            assert len(pipe) == 5
            assert list(next(iter(pipe)).keys) == [s["__key__"] for s in samples[rank::2][:4]]


def test_an_iterable_without_a_length_is_refused_at_once(packed):
    with pytest.raises(RecipeError, match=r"has no length; set stream.epoch_samples .*with_length"):
        load(dataset(packed))
    known = dataset(packed).with_length(45, silent=True)
    with load(known) as pipe:
        assert len(pipe) == 5


@pytest.mark.parametrize("policy", ["replace", "mask", "raise"])
def test_bad_foreign_samples_follow_the_policy(packed, policy):
    samples = dicts(packed)
    samples[3]["jpg"] = samples[3]["jpg"][:100]
    with load(samples, f"stream.on_bad={policy}") as pipe:
        if policy == "raise":
            with pytest.raises(SampleError, match=samples[3]["__key__"]):
                steps(pipe, 1)
            return
        batch = steps(pipe, 1)[0]
        assert pipe.replaced == 1
    want = [sample["__key__"] for sample in samples]
    kept = want[:8] if policy == "mask" else [*want[:3], *want[4:9]]
    assert list(batch.keys) == kept
    assert batch.valid.tolist() == [policy != "mask" or i != 3 for i in range(8)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: (s["__key__"], s["jpg"]), "gave tuple without '__key__'"),
        (lambda s: {**s, "png": s["jpg"]}, "of which 2 are images"),
        (lambda s: {"__key__": "k", "txt": b""}, "of which 0 are images"),
        (lambda s: {**s, "jpg": np.zeros((2, 2, 3))}, "is ndarray, not raw bytes; leave .decode"),
    ],
)
def test_samples_in_another_form_are_refused_by_name(packed, change, message):
    samples = [change(sample) for sample in dicts(packed)]
    with load(samples) as pipe, pytest.raises(ShardError, match=message):
        steps(pipe, 1)


def test_what_can_be_iterated_once_ends_with_a_word(packed):
    samples = dicts(packed)
    once = (sample for sample in samples)
    with (
        load(once, "stream.epoch_samples=45", "run.prefetch=0") as pipe,
        pytest.raises(ShardError, match="can be iterated only once"),
    ):
        steps(pipe, 6)
    broken = [{**sample, "jpg": b"nothing"} for sample in samples]
    with load(broken) as pipe, pytest.raises(ShardError, match="bad samples in a row"):
        steps(pipe, 1)
    with pytest.raises(RecipeError, match="an iterable has no rows to exclude"):
        load(samples, "stream.on_bad=exclude")


CHILD = textwrap.dedent("""
    import sys, warnings, webdataset, sslpipe
    from sslpipe.recipe import parse_recipe
    warnings.simplefilter("ignore", ResourceWarning)
    recipe = parse_recipe(sys.argv[1], overrides=["stream.epoch_samples=8"])
    data = webdataset.WebDataset("-", shardshuffle=False)
    with sslpipe.load(recipe, shards=data, device="cpu") as pipe:
        print(*next(iter(pipe)).keys)
""")


def test_a_tar_on_standard_input(packed):
    from .conftest import RECIPE

    with open(tars(packed)[0], "rb") as tar:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-c", CHILD, RECIPE], stdin=tar, capture_output=True, check=True
        )
    assert done.stdout.decode().split() == [s["__key__"] for s in dicts(packed)][:8]
