"""Features are written once: whole, resumable, shared by ranks, and never of other weights."""

import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from sslpipe.errors import SslpipeError, StateError
from sslpipe.evaluate import feature_parts
from sslpipe.evaluate.feature_cache import cached_features, features_at
from sslpipe.evaluate.feature_file import read_features, read_origin
from sslpipe.evaluate.feature_parts import ExtractSettings
from sslpipe.evaluate.features import central_batches, extract_all
from sslpipe.evaluate.subjects import Subject
from sslpipe.pipeline import Pipeline
from sslpipe.recipe import parse_recipe
from sslpipe.shards.side_files import held
from sslpipe.train.checkpoint import weights_digest
from tests.conftest import RECIPE, ROOT
from tests.servers import free_port

SETTINGS = ExtractSettings(batch_size=8, pixels=True, device="cpu")


class Means(nn.Module):
    """A small encoder whose results depend on rounding: a convolution and its means."""

    def __init__(self, seed):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.Sequential(nn.Conv2d(3, 12, 5), nn.GELU(), nn.Conv2d(12, 7, 5))

    def forward(self, images_BCHW):
        return self.layers(images_BCHW).mean((2, 3))


def subject(recipe, seed=0):
    encoder = Means(seed)
    return Subject("means", encoder, recipe, weights_digest(encoder.state_dict()), lambda: Means(9))


@pytest.fixture
def small_parts(monkeypatch):
    """Two batches a part: three parts of 45 samples."""
    monkeypatch.setattr(feature_parts, "PART", 16)


def test_a_file_holds_what_was_extracted(tmp_path, packed, recipe):
    path = tmp_path / "a.safetensors"
    made = features_at(path, subject(recipe), packed, SETTINGS)
    with central_batches(recipe, shards=packed, device="cpu", batch_size=8) as batches:
        encoders = {"trained": Means(0), "untrained": Means(9), "pixels": nn.Flatten()}
        direct = extract_all(encoders, batches, "cpu")
    assert list(made) == ["trained", "untrained", "pixels"]
    for name, found in made.items():
        assert found.features.equal(direct[name].features)
        assert found.uids.equal(direct[name].uids)
        assert found.labels.equal(direct[name].labels)
        assert found.contents.equal(direct[name].contents)
        assert found.classes == ("class0", "class1", "class2")
        assert len(found.blocks) == len(found.patches) == 0
    with safe_open(path, "pt") as file:  # as other tools read it
        assert file.get_tensor("trained/features").equal(made["trained"].features)
    assert path.stat().st_mode & 0o444 == 0o444
    assert list(tmp_path.iterdir()) == [path]


def test_the_bytes_do_not_depend_on_parts_and_ranks(tmp_path, packed, recipe, monkeypatch):
    contents = set()
    for part, size in ((10_000, 1), (16, 1), (16, 2), (8, 3), (16, 5)):
        monkeypatch.setattr(feature_parts, "PART", part)
        path = tmp_path / f"{part}-{size}.safetensors"
        for rank in reversed(range(size)):
            features_at(path, subject(recipe), packed, SETTINGS, rank=rank, world_size=size)
        contents.add(path.read_bytes())
    assert len(contents) == 1


def test_a_rank_that_is_missing_is_told(tmp_path, packed, recipe, small_parts):
    with pytest.raises(StateError, match=r"part 1 is missing \(2 of 3\); run the same command"):
        features_at(
            tmp_path / "a.safetensors", subject(recipe), packed, SETTINGS, rank=0, world_size=2
        )


RANK = textwrap.dedent(
    """
    import os, signal, sys
    sys.path.insert(0, sys.argv[1])
    from pathlib import Path
    from sslpipe.evaluate import feature_cache, feature_parts
    from sslpipe.recipe import parse_recipe
    from sslpipe.train.world import start_world
    from tests.conftest import RECIPE
    from tests.evaluate.test_feature_file import SETTINGS, subject

    feature_parts.PART = 16
    done = []
    true, looks = feature_cache.is_made_of, []

    def is_made_of(path, origin):  # a rank that is LATE for a file finds nothing at first
        looks.append(path.name)
        late = looks.count(path.name) == 1 and os.environ.get("LATE") == path.name
        return not late and true(path, origin)

    feature_cache.is_made_of = is_made_of

    def progress(samples, total):
        done.append(samples)
        if len(done) == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)

    if __name__ == "__main__":
        with start_world("cpu"):
            recipe = parse_recipe(RECIPE, path="test.yaml", overrides=["run.workers=0"])
            what = subject(recipe), sys.argv[2], SETTINGS
            for path in map(Path, sys.argv[4:]):
                done.clear()
                feature_cache.features_at(path, *what, progress=progress)
                print(*done, flush=True)
    """
)


def start(tmp_path, packed, *out, kill_at=0, **environ):
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    return subprocess.Popen(
        [sys.executable, script, ROOT, packed, str(kill_at), *out],
        env={**os.environ, **environ}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_killed_run_goes_on_and_gives_the_same_bytes(tmp_path, packed, recipe, small_parts):
    whole, path = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    features_at(whole, subject(recipe), packed, SETTINGS)
    killed = start(tmp_path, packed, path, kill_at=4)  # in the second of three parts
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert not path.exists()
    parts = sorted((tmp_path / "killed.safetensors.parts").iterdir())
    assert [part.name for part in parts] == ["0000000.safetensors"]
    heard = []
    features_at(
        path, subject(recipe), packed, SETTINGS, progress=lambda *numbers: heard.append(numbers)
    )
    assert heard == [(8, 29), (16, 29), (24, 29), (29, 29)]  # 45 less the 16 that were there
    assert path.read_bytes() == whole.read_bytes()


@pytest.fixture(scope="module")
def group(tmp_path_factory, packed):
    """The folder in which two ranks of a process group made three files, and what they said.

    The first is new; the second is there, and rank 0 sees it late; the third is another's.
    """
    folder = tmp_path_factory.mktemp("group")
    new, made, another = (folder / f"{name}.safetensors" for name in ("new", "made", "another"))
    features_at(made, subject(parse_recipe(RECIPE, path="test.yaml")), packed, SETTINGS)
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    (folder / "another.safetensors.parts").mkdir()
    with held(folder / "another.safetensors.parts", "extracts"):
        ranks = [
            start(folder, packed, new, made, another, RANK=rank, LOCAL_RANK=rank, **world, **late)
            for rank, late in (("0", {"LATE": made.name}), ("1", {}))
        ]
        return folder, [rank.communicate(timeout=60) for rank in ranks]


def test_two_ranks_of_a_process_group_give_the_same_bytes(group):
    folder, said = group
    assert [out.splitlines()[0] for out, _ in said] == ["8 16", "8 16 24 29"]
    assert (folder / "new.safetensors").read_bytes() == (folder / "made.safetensors").read_bytes()


def test_ranks_of_which_some_see_the_file_and_some_do_not_go_on_alike(group):
    assert [out.splitlines()[1:] for out, _ in group[1]] == [[""], [""]]


def test_a_second_process_group_is_refused_on_all_its_ranks(group):
    folder, said = group
    told = [err.strip().splitlines()[-1] for _, err in said]
    parts = folder / "another.safetensors.parts"
    assert f"{parts}: another process extracts in this folder now; wait for its end" in told[0]
    assert f"{parts}: rank 0 cannot have it" in told[1]
    assert not (folder / "another.safetensors").exists()


def test_the_cache_is_read_and_never_of_something_else(tmp_path, packed, recipe, monkeypatch):
    first = cached_features(subject(recipe), packed, tmp_path, SETTINGS)

    def refuse(*_, **__):
        raise AssertionError("it is in the cache")

    with monkeypatch.context() as patch:
        patch.setattr(feature_parts, "extract_all", refuse)
        again = cached_features(subject(recipe), packed, tmp_path, SETTINGS)
    assert again["trained"].features.equal(first["trained"].features)
    others = {
        "weights": cached_features(subject(recipe, seed=1), packed, tmp_path, SETTINGS),
        "precision": cached_features(
            subject(recipe), packed, tmp_path, replace(SETTINGS, precision="bf16")
        ),
        "view": cached_features(
            subject(recipe.model_copy(update={"views": smaller(recipe)})),
            packed,
            tmp_path,
            SETTINGS,
        ),
    }
    for what, found in others.items():
        assert not found["trained"].features.equal(first["trained"].features), what
    fewer = replace(SETTINGS, untrained=False, pixels=False)
    assert list(cached_features(subject(recipe), packed, tmp_path, fewer)) == ["trained"]
    assert len(list(tmp_path.iterdir())) == 5


def smaller(recipe):
    view = recipe.views["global"]
    crop = replace(view.ops[0], settings={"size": (24, 24)})
    return {"global": view.model_copy(update={"ops": (crop, view.ops[-1])})}


def test_a_file_of_other_weights_is_replaced_and_a_strangers_is_not(tmp_path, packed, recipe):
    path = tmp_path / "a.safetensors"
    features_at(path, subject(recipe, seed=1), packed, SETTINGS)
    features_at(path, subject(recipe), packed, SETTINGS)
    assert read_origin(path).weights == subject(recipe).digest
    with central_batches(recipe, shards=packed, device="cpu", batch_size=8) as batches:
        assert isinstance(batches, Pipeline)
        direct = extract_all({"trained": Means(0)}, batches, "cpu")
    assert read_features(path)["trained"].features.equal(direct["trained"].features)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(SslpipeError, match=r"holds no features of this version .*; remove it"):
        features_at(path, subject(recipe), packed, SETTINGS)


def test_parts_of_other_weights_are_made_anew(tmp_path, packed, recipe, small_parts):
    path, right = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    features_at(path, subject(recipe, seed=1), packed, SETTINGS, rank=1, world_size=2)
    features_at(path, subject(recipe), packed, SETTINGS)
    features_at(right, subject(recipe), packed, SETTINGS)
    assert path.read_bytes() == right.read_bytes()


def test_damaged_files(tmp_path, packed, recipe):
    path = tmp_path / "a.safetensors"
    features_at(path, subject(recipe), packed, SETTINGS)
    data = path.read_bytes()
    path.write_bytes(data[:-8])
    with pytest.raises(StateError, match="no features can be read"):
        read_features(path)
    with pytest.raises(StateError, match="no features can be read"):
        read_origin(tmp_path / "missing.safetensors")
