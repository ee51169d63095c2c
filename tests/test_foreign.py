"""Anybody's iterable of samples as a source: webdataset pipelines, lists, standard input."""

import gc
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest
import torch
import webdataset as wds

from sslpipe.errors import RecipeError, SampleError, ShardError, StateError
from sslpipe.shards import open_manifest

from .conftest import RECIPE
from .streaming import load, steps, trace


def walk(samples, *overrides, count, **where):
    with load(samples, *overrides, **where) as pipe:
        return steps(pipe, count)


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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        samples = [dict(sample) for sample in dataset(folder)]
        gc.collect()
    return samples


FOREIGN = ("stream.order=sequential", "stream.remainder=wrap", "stream.epoch_samples=45")


@pytest.fixture(scope="module")
def own(packed):
    """Two epochs and more of the packed set, in its order."""
    return walk(packed, *FOREIGN, count=13)


@pytest.mark.usefixtures("open_files")
@pytest.mark.parametrize("make", [dataset, pipeline, piped, dicts])
def test_foreign_samples_get_the_views_that_packed_ones_get(packed, own, make):
    theirs = walk(make(packed), *FOREIGN, count=13)
    assert trace(theirs) == trace(own)
    for a, b in zip(own, theirs, strict=True):
        assert b.keys == a.keys
        assert torch.equal(b.views["global"], a.views["global"])
        assert torch.equal(b.labels, a.labels)


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
    batch = walk(dicts(packed)[:2] * 4, count=1)[0]
    assert torch.equal(batch.views["global"][:, 0], batch.views["global"][:, 6])


def test_samples_that_all_have_one_key_are_refused(packed):
    same = [{**sample, "__key__": None} for sample in dicts(packed)[:8]]
    with pytest.raises(ShardError, match="gave 8 samples with the one key 'None'; give each its"):
        walk(same, count=1)


@pytest.mark.parametrize(
    ("shards", "message"),
    [(5, "shards=5 is no folder, manifest or iterable"), ([], "says 0 samples; give one")],
)
def test_what_is_no_iterable_of_samples_is_refused_at_once(shards, message):
    with pytest.raises(RecipeError, match=message):
        load(shards)


def test_each_rank_takes_what_its_own_iterable_gives(packed):
    samples = dicts(packed)
    for rank in range(2):
        where = {"rank": rank, "world_size": 2}
        with pytest.raises(RecipeError, match="of this rank only; set"):
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


def test_keys_in_no_encoding_are_those_of_the_index(packed):
    samples = [{**dicts(packed)[0], "__key__": key} for key in ("caf\udce9", "caf\udce8")]
    (batch,) = walk(samples, "stream.batch_size=2", count=1)
    assert [*batch.keys] == ["caf%E9", "caf%E8"]


THREES = [3, 3.0, "3", b"3", " 3 ", b"3\n", "3.0", np.int64(3), np.float32(3), np.array([3]),
          torch.tensor(3), torch.tensor([3.0])]  # fmt: skip


@pytest.mark.parametrize(
    ("values", "label"),
    [
        (THREES, 3),
        ([None, "", b" ", -1, b"-1", "-1.0", torch.tensor(-1)], -1),
        ([2**31 - 1], 2**31 - 1),
    ],
)
def test_labels_in_every_form(packed, values, label):
    sample = dicts(packed)[0]
    samples = [{**sample, "__key__": str(n), "cls": value} for n, value in enumerate(values)]
    (batch,) = walk(samples, f"stream.batch_size={len(values)}", count=1)
    assert batch.labels.tolist() == [label] * len(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: (s["__key__"], s["jpg"]), "gave tuple without '__key__'"),
        (lambda s: {**s, "png": s["jpg"]}, "of which 2 can be decoded"),
        (lambda s: {"__key__": "k", "txt": b""}, "of which 0 can be decoded"),
        (lambda s: {**s, "jpg": np.zeros((2, 2, 3))}, "is ndarray, not raw bytes; leave .decode"),
        (lambda s: {**s, "cls": "cat"}, "sample .+: label 'cat' is no class id .*; number the"),
        (lambda s: {**s, "cls": b"3.5"}, "label b'3.5' is no class id"),
        (lambda s: {**s, "cls": 3.5}, "label 3.5 is no class id"),
        (lambda s: {**s, "cls": 10**25}, "label 10000000000000000000000000 is no class id"),
        (lambda s: {**s, "cls": "9" * 9999}, r"label '9+\.\.\. is no class id"),
        (lambda s: {**s, "cls": 2**31}, "label 2147483648 is no class id"),
        (lambda s: {**s, "cls": -2}, "label -2 is no class id"),
        (lambda s: {**s, "cls": True}, "label True is no class id"),
        (lambda s: {**s, "cls": float("inf")}, "label inf is no class id"),
        (lambda s: {**s, "cls": np.arange(2)}, "is no class id"),
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


# webdataset.WebDataset takes "-" for a file name since its cache stands before its opener
CHILD = textwrap.dedent("""
    import sys, warnings, webdataset, sslpipe
    from sslpipe.recipe import parse_recipe
    warnings.simplefilter("ignore", ResourceWarning)
    recipe = parse_recipe(sys.argv[1], overrides=["stream.epoch_samples=4", "stream.batch_size=4"])
    data = webdataset.DataPipeline(
        webdataset.SimpleShardList(["-"]), webdataset.tarfile_to_samples()
    )
    with sslpipe.load(recipe, shards=data, device="cpu") as pipe:
        print(*next(iter(pipe)).keys)
""")


def test_a_tar_on_standard_input(packed):
    with open(tars(packed)[0], "rb") as tar:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-c", CHILD, RECIPE], stdin=tar, capture_output=True, check=False
        )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().split() == [s["__key__"] for s in dicts(packed)][:4]
