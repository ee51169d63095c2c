"""The examples in the docstrings of extension points run as they stand, saved as a user would."""

import ast
import itertools
import re
import sys
import tarfile

import pytest
import torch

import sslpipe
from sslpipe.recipe import parse_recipe

from .conftest import ROOT

RECIPE = """
modality: image
stream: {batch_size: 4, seed: 0}
views:
  global:
    count: 2
    ops:
      - RandomResizedCrop: {size: [32, 32]}
run: {threads: 1, prefetch: 0, executor: kornia}
"""
POINTS = {  # file -> what its example adds to the recipe
    "masks/__init__.py": "masks: {{mine: {{patch_size: 8, sampler: '{name}'}}}}",
    "modalities/image/ops/__init__.py": "      - '{name}': {{least: 0.3}}",
    "modalities/image/targets/__init__.py": "targets: {{mine: {{task: '{name}'}}}}",
    "modalities/__init__.py": None,  # it stands in the place of `image`
    "stream/foreign.py": None,  # it is given as shards=
}
MOST_LINES = 25  # of code: an example that needs more says that the extension point is too hard


@pytest.fixture
def example(request, tmp_path, monkeypatch):
    """The module `mine`, made of the block in a docstring, and the name of its class."""
    page = ast.get_docstring(ast.parse((ROOT / "sslpipe" / request.param).read_text()))
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len([line for line in block.splitlines() if line.strip()]) <= MOST_LINES
    (tmp_path / "mine.py").write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    *_, name = [node.name for node in ast.parse(block).body if isinstance(node, ast.ClassDef)]
    yield request.param, name
    sys.modules.pop("mine", None)


def two_batches(text, shards):
    """The first batches of a recipe on the CPU, which keep what the spec promised."""
    recipe = parse_recipe(text)
    with sslpipe.load(recipe, shards=shards, device="cpu", rank=0, world_size=1) as pipe:
        batches = list(itertools.islice(pipe, 2))
        assert [batch.views["global"].shape for batch in batches] == [(2, 4, 3, 32, 32)] * 2
        return pipe.spec, batches


def changed(point, name, sample):
    """Batches with and without the example."""
    line = POINTS[point].format(name=f"mine:{name}")
    at = RECIPE.index("run:")
    text = f"{RECIPE[:at]}{line}\n{RECIPE[at:]}"
    return two_batches(text, sample), two_batches(RECIPE, sample)


@pytest.mark.parametrize("example", ["masks/__init__.py"], indirect=True)
def test_a_sampler(example, sample):
    (spec, batches), _ = changed(*example, sample)
    masks = [batch.masks["mine"] for batch in batches]
    assert all(mask.sum(-1).eq(spec.masks["mine"].hidden).all() for mask in masks)
    assert len({tuple(row.tolist()) for mask in masks for row in mask[0]}) > 1


@pytest.mark.parametrize("example", ["modalities/image/ops/__init__.py"], indirect=True)
def test_an_op(example, sample):
    (spec, batches), (_, plain) = changed(*example, sample)
    columns = spec.views["global"].columns
    gate = [name.endswith(".on") for name in columns].index(True)
    for ours, theirs in zip(batches, plain, strict=True):
        on = ours.params["global"][..., gate] > 0
        same = ours.views["global"].eq(theirs.views["global"]).flatten(2).all(-1)
        assert same[~on].all()
        assert not same[on].any()
    assert {True, False} <= set(on.flatten().tolist())


@pytest.mark.parametrize("example", ["modalities/image/targets/__init__.py"], indirect=True)
def test_a_task(example, sample):
    (_, batches), (_, plain) = changed(*example, sample)
    seen = set()
    for ours, theirs in zip(batches, plain, strict=True):
        same = ours.views["global"].eq(theirs.views["global"]).flatten(2).all(-1)
        assert same.eq(ours.targets["mine"] == 0).all()
        seen |= set(ours.targets["mine"].flatten().tolist())
    assert seen == {0, 1}


@pytest.mark.parametrize("example", ["stream/foreign.py"], indirect=True)
def test_an_iterable(example, sample, tmp_path):
    with tarfile.open(sample / "photos-000000.tar") as tar:
        for member in tar:  # `filter` of extractall is missing in the first 3.11
            file = tmp_path / "photos" / member.name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(tar.extractfile(member).read())
    import mine

    photos = getattr(mine, example[1])(tmp_path / "photos")
    _, batches = two_batches(RECIPE, photos)
    keys = [key for batch in batches for key in batch.keys]
    assert keys == [path.stem for path in photos.paths[:8]]


def test_every_block_has_a_test():
    """Blocks of other rooms stand in their own tests."""
    ours = ("masks", "modalities", "stream")
    found = {
        str(path.relative_to(ROOT / "sslpipe"))
        for room in ours
        for path in (ROOT / "sslpipe" / room).rglob("*.py")
        if "```python" in path.read_text()
    }
    assert found == set(POINTS)


@pytest.mark.parametrize("example", ["modalities/__init__.py"], indirect=True)
def test_a_modality(example, sample):
    text = RECIPE.replace("modality: image", f"modality: mine:{example[1]}")
    (spec, batches), (plain_spec, plain) = two_batches(text, sample), two_batches(RECIPE, sample)
    assert spec == plain_spec
    for ours, theirs in zip(batches, plain, strict=True):
        assert ours.keys == theirs.keys
        assert torch.equal(ours.params["global"], theirs.params["global"])
        torch.testing.assert_close(ours.views["global"], 1 - theirs.views["global"])
