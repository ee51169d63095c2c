"""A modality of a user's own passes through everything without a line of ours changed."""

import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

import sslpipe
from sslpipe.errors import RecipeError, SampleError
from sslpipe.recipe import parse_recipe
from sslpipe.shards import read_manifest

from .toy import NAME

RECIPE = f"""\
modality: {NAME}
stream: {{batch_size: 12, seed: 0, order: global}}
views:
  global: {{count: 2, ops: [Window: {{length: 32}}]}}
masks:
  hole: {{patch_size: 4, sampler: {{random: {{ratio: 0.5}}}}}}
method: {{simclr: {{projector: [16, 8]}}}}
train:
  backbone: {{"tests.modalities.toy:SeriesEncoder": {{dim: 12}}}}
  optimizer: {{adamw: {{lr: 1.0e-3, weight_decay: 0.0}}}}
  epochs: 2
run: {{threads: 2}}
"""
SERIES = 48  # in two classes, slow and fast


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """Sines of two frequencies and random phases, (2, T) each, T between 40 and 90 steps."""
    folder, rng = tmp_path_factory.mktemp("series"), np.random.default_rng(0)
    for number in range(SERIES):
        time = np.arange(rng.integers(40, 90))
        speed = (0.2, 0.9)[number % 2]
        rows = np.sin(speed * time + rng.uniform(0, 6, (2, 1))) + rng.normal(0, 0.3, (2, len(time)))
        place = folder / ("slow", "fast")[number % 2]
        place.mkdir(exist_ok=True)
        np.save(place / f"{number:02d}.npy", rows.astype(np.float32))
    return folder


@pytest.fixture
def recipe(tmp_path):
    """The recipe as a file."""
    path = tmp_path / "series.yaml"
    path.write_text(RECIPE)
    return path


def test_from_files_to_an_evaluated_encoder(series, recipe, run, tmp_path):
    shards, out = tmp_path / "shards", tmp_path / "run"
    run("pack", series, shards, "--modality", NAME, "--workers", 1, "--shard-samples", 10)
    assert read_manifest(shards).modality == NAME
    assert "all good" in run("verify", shards)[0]
    assert "steps" in run("inspect", shards)[0]
    run("inspect", shards, "--sheet", tmp_path / "stored.png", "--count", 3)
    run("show", recipe, "--shards", shards, "--out", tmp_path / "show.png", "--rows", 4)
    for name, lines in (("show.png", 8), ("stored.png", 6)):
        with Image.open(tmp_path / name) as picture:
            assert picture.size == (4 * 32, 40 * lines)
    run("train", recipe, "--shards", shards, "--out", out, "--device", "cpu")
    rows = json.loads(run("eval", out / "last.pt", shards, "--json", "--device", "cpu")[0])
    assert rows["trained"]["knn20 top-1"]["value"] > 0.9  # of slow and fast


def test_the_stream_is_elastic_and_replayable(series, run, tmp_path):
    run("pack", series, tmp_path / "shards", "--modality", NAME, "--workers", 1)
    recipe = parse_recipe(RECIPE)
    seen = {}
    for world in (1, 3):
        for rank in range(world):
            with sslpipe.load(
                recipe, shards=tmp_path / "shards", device="cpu", rank=rank, world_size=world
            ) as pipe:
                for batch in pipe:
                    assert batch.views["global"].shape == (2, 12 // world, 2, 32)
                    assert (batch.masks["hole"].sum(-1) == 4).all()
                    for b, uid in enumerate(batch.uids.tolist()):
                        here = batch.views["global"][:, b], batch.masks["hole"][:, b]
                        there = seen.setdefault(uid, here)
                        assert all(torch.equal(x, y) for x, y in zip(here, there, strict=True))
    assert len(seen) == SERIES


def test_tars_of_others_and_their_damage(series, run, tmp_path):
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "a.tar", "w") as tar:
        for path in sorted(series.rglob("*.npy")):
            tar.add(path, arcname=path.name)
    run("index", tmp_path / "tars", "--modality", NAME)
    manifest = read_manifest(tmp_path / "tars")
    assert (manifest.samples, manifest.modality) == (SERIES, NAME)
    with tarfile.open(tmp_path / "tars" / "a.tar") as tar:
        member = tar.getmembers()[3]
    data = bytearray((tmp_path / "tars" / "a.tar").read_bytes())
    data[member.offset_data + member.size // 2] ^= 1
    (tmp_path / "tars" / "a.tar").write_bytes(data)
    assert "CRC-32" in run("verify", tmp_path / "tars", code=1)[1]


def test_an_unknown_modality_is_named():
    for name, message in (("imgae", "did you mean 'image'"), ("no.such:Thing", "cannot import")):
        recipe = parse_recipe(RECIPE, path="r.yaml", overrides=[f"modality={name}"])
        with pytest.raises(RecipeError, match=rf"^--set modality={name}: .*{message}"):
            sslpipe.load(recipe, shards="shards/sample", device="cpu")


TWO = f"""\
stream: {{batch_size: 6, seed: 0}}
views:
  picture: {{count: 2, ops: [RandomResizedCrop: {{size: [16, 16]}}]}}
  series: {{modality: {NAME}, ops: [Window: {{length: 32}}]}}
masks:
  patches: {{view: picture, patch_size: 4, sampler: random}}
  steps: {{view: series, patch_size: 8, sampler: random}}
run: {{threads: 2}}
"""


@pytest.fixture
def pairs(series, tmp_path):
    """A tar of 12 pictures, each with a series beside it, and its index."""
    (tmp_path / "pairs").mkdir()
    with tarfile.open(tmp_path / "pairs" / "a.tar", "w") as tar:
        for number, path in enumerate(sorted(series.rglob("*.npy"))[:12]):
            picture = tmp_path / "picture.png"
            Image.new("RGB", (20 + number, 30), (20 * number, 0, 0)).save(picture)
            tar.add(picture, arcname=f"{path.stem}.png")
            tar.add(path, arcname=path.name)
    return tmp_path / "pairs"


def test_two_modalities_are_two_groups_of_a_sample(series, pairs, run):
    run("index", pairs)
    with sslpipe.load(parse_recipe(TWO), shards=pairs, device="cpu") as pipe:
        batch = next(iter(pipe))
        assert pipe.spec.views["picture"].axes == "CHW"
        assert pipe.spec.views["series"].axes == "CT"
        assert {name: spec.axes for name, spec in pipe.spec.masks.items()} == {
            "patches": "HW", "steps": "T",
        }  # fmt: skip
    assert batch.views["picture"].shape == (2, 6, 3, 16, 16)
    for b, key in enumerate(batch.keys):
        (path,) = series.rglob(f"{key}.npy")
        start = int(batch.params["series"][0, b, 0])
        window = torch.from_numpy(np.load(path)[:, start : start + 32])
        assert torch.equal(batch.views["series"][0, b], window)


def test_a_sample_without_the_other_member_is_bad(series, pairs, run):
    with tarfile.open(pairs / "a.tar", "a") as tar:
        tar.add(pairs.parent / "picture.png", arcname="alone.png")
    run("index", pairs)
    recipe = parse_recipe(TWO, overrides=["stream.on_bad=raise", "stream.batch_size=13"])
    message = r"a\.tar alone: has no member \.npy"
    with (
        sslpipe.load(recipe, shards=pairs, device="cpu") as pipe,
        pytest.raises(SampleError, match=message),
    ):
        next(iter(pipe))
