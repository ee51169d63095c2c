"""What evaluates a run while it trains: the numbers of `sslpipe eval`, on samples chosen by uid."""

import json
import shutil

import numpy as np
import pytest
import torch

import sslpipe
from sslpipe.errors import RecipeError, SslpipeError
from sslpipe.evaluate import cross_validated, extract, knn, leave_one_out
from sslpipe.evaluate.during_training import labelled_part, monitor_of, taken_by_key
from sslpipe.evaluate.features import central_batches
from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.recipe import parse_recipe
from sslpipe.shards import PackSettings, pack
from sslpipe.shards.manifest import open_manifest
from sslpipe.train import initial_method
from sslpipe.train.loop import train_recipe

from ..conftest import RECIPE, write_images

TRAINABLE = (
    RECIPE
    + """\
method: {simclr: {projector: [16, 8]}}
train:
  backbone: {cifar_resnet: {width: 8, blocks: [1, 1, 1, 1]}}
  optimizer: {sgd: {lr: 0.1}}
  epochs: 2
"""
)


def recipe_of(**monitor):
    text = TRAINABLE + (f"  monitor: {json.dumps(monitor)}\n" if monitor else "")
    return parse_recipe(text, path="mine.yaml")


@pytest.fixture(scope="module")
def encoder(packed):
    with sslpipe.load(recipe_of(), shards=packed, device="cpu", rank=0, world_size=1) as pipe:
        return initial_method(recipe_of(), pipe.spec).encoder


def features(encoder, shards):
    with central_batches(recipe_of(), shards=shards, device="cpu") as batches:
        return extract(encoder, batches, "cpu")


def packed_as(tmp_path, *, classes, count=12, **settings):
    """A set of images of its own."""
    write_images(tmp_path / "photos", count, classes=classes)
    pack(tmp_path / "photos", tmp_path / "shards", PackSettings(codec=ImageCodec(), **settings))
    return tmp_path / "shards"


def test_numbers_are_those_of_eval(packed, encoder):
    whole = features(encoder, packed)
    monitor = monitor_of(recipe_of(protocols=["linear", "knn"]), shards=packed)
    assert list(monitor(encoder).items()) == [
        ("linear_top1", cross_validated(whole).top1),
        ("knn_top1", leave_one_out(whole).top1),
    ]
    tested = monitor_of(recipe_of(), shards="not looked at", monitor=packed, test=packed)
    assert tested(encoder) == {"knn_top1": knn(whole, whole).top1}


def test_a_part_is_encoded_and_nothing_else(packed, encoder):
    monitor = monitor_of(recipe_of(samples=10), shards=packed)
    with sslpipe.load(
        recipe_of(), shards=monitor.bank, device="cpu", rank=0, world_size=1
    ) as stream:
        assert stream.source.rank_epoch[0] == 10
    whole, part = features(encoder, packed), features(encoder, monitor.bank)
    keep = taken_by_key(whole.uids.numpy(), whole.labels.numpy(), 10)
    assert part.uids.tolist() == whole.uids[keep].tolist()
    torch.testing.assert_close(part.features, whole.features[keep], rtol=1e-4, atol=1e-5)
    assert monitor(encoder) == {"knn_top1": leave_one_out(part).top1}
    assert "knn of 10 of 45 labelled samples of " in monitor.line
    assert " (b2:" in monitor.line
    assert part.classes == whole.classes


def test_the_choice_is_by_uid_and_spread():
    rng = np.random.default_rng(0)
    uids = rng.integers(-(2**62), 2**62, 4000)
    labels = np.where(np.arange(4000) < 1000, -1, np.arange(4000) % 7)
    keep = taken_by_key(uids, labels, 600)
    assert keep.sum() == 600
    assert not keep[labels < 0].any()
    order = rng.permutation(4000)
    assert set(uids[order][taken_by_key(uids[order], labels[order], 600)]) == set(uids[keep])
    fewer = taken_by_key(uids, labels, 100)
    assert (keep | ~fewer).all()  # a smaller choice is part of a larger one
    halves = keep[1000:2500].sum(), keep[2500:].sum()
    assert abs(halves[0] - 300) < 4 * np.sqrt(150)  # hypergeometric, below binomial's variance
    assert taken_by_key(uids, labels, 9999).sum() == 3000


def test_excluded_samples_are_left_out(packed, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(packed, folder)
    first = open_manifest(folder).shards[0]
    document = json.loads((folder / "manifest.json").read_text())
    document["exclude"] = {first.file: list(range(first.samples))}  # the whole first shard
    (folder / "manifest.json").write_text(json.dumps(document))
    part, line = labelled_part(folder, 10_000)
    left = 45 - first.samples
    assert f"{left} of {left} labelled samples" in line
    with central_batches(recipe_of(), shards=part, device="cpu") as batches:
        assert sum(len(batch.uids) for batch in batches) == left


def test_a_run_is_the_same_with_and_without(packed, tmp_path):
    """Its own pipeline, threads and protocols leave the weights as they are, to the bit."""
    recipe = recipe_of(every_epochs=1, protocols=["knn", "linear"], samples=20)
    plain = recipe.model_copy(update={"train": recipe.train.model_copy(update={"monitor": None})})
    for name, made in (("watched", recipe), ("plain", plain)):
        monitor = monitor_of(made, shards=packed)
        assert (monitor is None) == (name == "plain")
        train_recipe(made, shards=packed, out=tmp_path / name, resume=False, max_steps=None,
                     device="cpu", monitor=monitor)  # fmt: skip
    watched, alone = (torch.load(tmp_path / name / "last.pt") for name in ("watched", "plain"))
    for part in ("method", "stream", "fingerprint"):
        if part == "method":
            assert all(torch.equal(v, alone[part][k]) for k, v in watched[part].items())
        else:
            assert watched[part] == alone[part]
    rows = [json.loads(s) for s in (tmp_path / "watched/metrics.jsonl").read_text().splitlines()]
    evaluated = [row for row in rows if "eval/knn_top1" in row]
    assert [row["step"] for row in evaluated] == [0, 5, 10]  # an epoch has 45 // 8 batches
    best = torch.load(tmp_path / "watched" / "best.pt")
    assert best["step"] == evaluated[-1]["eval/best_step"]


def test_nobody_asks_nobody_answers(packed):
    assert monitor_of(recipe_of(), shards=packed) is None


def test_unlabelled_sets_are_refused_before_anything_is_read(tmp_path):
    (tmp_path / "photos").mkdir()
    write_images(tmp_path / "made", 6)
    for path in (tmp_path / "made").rglob("*.jpg"):
        shutil.copy(path, tmp_path / "photos" / path.name)
    pack(tmp_path / "photos", tmp_path / "flat", PackSettings(codec=ImageCodec()))
    with pytest.raises(SslpipeError, match=r"flat: .*0 of 6 samples have a label; give a labelled"):
        monitor_of(recipe_of(every_epochs=1), shards=tmp_path / "flat")
    one = packed_as(tmp_path / "one", classes=1)
    with pytest.raises(SslpipeError, match="12 of 12 samples have a label, all the same; give a"):
        monitor_of(recipe_of(), shards="anything", monitor=one)


def test_wrong_names_and_sets_are_one_line(packed, tmp_path):
    with pytest.raises(RecipeError, match=r"^mine.yaml:19: .* 'knnn'; did you mean 'knn'\?"):
        monitor_of(recipe_of(protocols=["knnn"]), shards=packed)
    with pytest.raises(SslpipeError, match=r"trains on several sets .* name a labelled set"):
        monitor_of(recipe_of(every_epochs=1), shards={"a": packed, "b": packed})
    other = tmp_path / "other"
    shutil.copytree(packed, other)
    document = json.loads((other / "manifest.json").read_text())
    document["classes"] = [f"else{i}" for i in range(3)]
    (other / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(SslpipeError, match="no class of the test set"):
        monitor_of(recipe_of(), shards=packed, test=other)
