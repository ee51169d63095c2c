"""What an extension of the user's returns is compared with what it said, and its class is named."""

import sys

import numpy as np
import pytest

import sslpipe
from sslpipe.errors import ContractError, RecipeError
from sslpipe.recipe import parse_recipe

BASE = """
modality: {modality}
stream: {{batch_size: 4}}
views:
  global:
    count: 2
    ops:
      - RandomResizedCrop: {{size: [32, 32]}}
{rest}
run: {{threads: 1, prefetch: 0, executor: kornia}}
"""
MINE = """
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from sslpipe.batch import TargetSpec
from sslpipe.modalities import Made
from sslpipe.modalities.image import ImageModality
from sslpipe.modalities.image.maker import ImageMaker


@dataclass(frozen=True, kw_only=True)
class Halves:  # hides half of the patches in some masks, a quarter in others
    def hidden(self, grid):
        return int(np.prod(grid)) // 2

    def draw(self, keys, place, stream, grid):
        n = int(np.prod(grid))
        share = np.where(keys.uids % 7 == 3, n // 4, n // 2)
        return np.broadcast_to(np.arange(n) < share[:, None], (len(keys.views), len(keys.uids), n))


@dataclass(frozen=True, kw_only=True)
class Seldom(Halves):  # does so only for samples that no trial meets
    def draw(self, keys, place, stream, grid):
        n = int(np.prod(grid))
        share = np.where(np.abs(keys.uids) > 1000, n // 4, n // 2)
        return np.broadcast_to(np.arange(n) < share[:, None], (len(keys.views), len(keys.uids), n))


@dataclass(frozen=True, kw_only=True)
class Unkeyed(Halves):  # is random by a generator that no state keeps
    def draw(self, keys, place, stream, grid):
        n = int(np.prod(grid))
        return np.random.rand(len(keys.views), len(keys.uids), n).argsort(-1) < n // 2


@dataclass(frozen=True, kw_only=True)
class Numbers:  # floats are no masks
    def hidden(self, grid):
        return None

    def draw(self, keys, place, stream, grid):
        return keys.uniforms(stream, int(np.prod(grid)))


@dataclass(frozen=True, kw_only=True)
class Smaller:  # returns images of another size
    columns: ClassVar = ("on",)
    reference_only: ClassVar = True

    def draw(self, source):
        return source.uniforms(1)

    def apply(self, images, rows):
        return images[..., ::2, ::2]


@dataclass(frozen=True, kw_only=True)
class OneColumn:  # draws one column for two, which NumPy would spread over both
    columns: ClassVar = ("on", "factor")
    reference_only: ClassVar = True

    def draw(self, source):
        return source.uniforms(1)

    def apply(self, images, rows):
        return images


@dataclass(frozen=True, kw_only=True)
class Task:
    classes: int = 2
    cut: bool = False
    short: bool = False

    def specs(self, view, spec):
        return spec, TargetSpec(view, spec.count, self.classes)

    def draw(self, keys, stream):
        return (keys.uids % 3 + np.zeros((len(keys.views), 1))).astype(np.int64)

    def apply(self, views, table, there):
        return views[..., :16] if self.cut else views, there[:1] if self.short else there


class HalfMaker(ImageMaker):
    def make(self, arrays, tables, targets):
        made = super().make(arrays, tables, targets)
        return Made({"global": made.views["global"].half()}, *made[1:])


class Half(ImageModality):
    def maker(self, recipe, decider, *, device, threads):
        return HalfMaker(decider, device=device, executor="kornia")
"""


@pytest.fixture
def first_batch(sample, tmp_path, monkeypatch):
    (tmp_path / "mine_returned.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)

    def make(rest="", modality="image"):
        text = BASE.format(rest=rest, modality=modality)
        with sslpipe.load(parse_recipe(text), shards=sample, device="cpu") as pipe:
            return next(iter(pipe))

    yield make
    sys.modules.pop("mine_returned", None)


def task(settings):
    return f"targets: {{t: {{task: {{'mine_returned:Task': {settings}}}}}}}"


def test_a_mask_that_hides_another_share_is_told_before_any_data(first_batch):
    with pytest.raises(RecipeError, match=r"mine_returned:Halves: hidden\(\) says 8 of 16"):
        first_batch("masks: {m: {patch_size: 8, sampler: 'mine_returned:Halves'}}")


def test_a_mask_that_hides_another_share_of_one_sample_is_told_with_its_batch(first_batch):
    with pytest.raises(ContractError, match=r"mine_returned:Seldom: masks.m hides 4 to 4 patches"):
        first_batch("masks: {m: {patch_size: 8, sampler: 'mine_returned:Seldom'}}")


def test_a_mask_that_no_key_decides(first_batch):
    with pytest.raises(RecipeError, match=r"mine_returned:Unkeyed draws other masks when it is"):
        first_batch("masks: {m: {patch_size: 8, sampler: 'mine_returned:Unkeyed'}}")


def test_a_mask_that_is_no_mask(first_batch):
    with pytest.raises(RecipeError, match=r"mine_returned:Numbers draws float64 of \(1, 64, 16\)"):
        first_batch("masks: {m: {patch_size: 8, sampler: 'mine_returned:Numbers'}}")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Smaller", r"apply\(\) returned images of shape \(8, 3, 16, 16\)"),
        ("OneColumn", r"draw\(\) returned a table of shape \(2, 4, 1\).* says \(2, 4, 2\)"),
    ],
)
def test_an_op(first_batch, name, said):
    with pytest.raises(ContractError, match=f"mine_returned:{name}: {said}"):
        first_batch(f"      - 'mine_returned:{name}'")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("{cut: true}", r"apply\(\) returned views 'global' of shape \(2, 4, 3, 32, 16\)"),
        ("{classes: 3, short: true}", r"apply\(\) returned targets of shape \(1, 4\)"),
        (
            "{classes: 2}",
            r"apply\(\) returned class ids from 0 to 2, where its spec says 2 classes",
        ),
    ],
)
def test_a_task(first_batch, settings, said):
    with pytest.raises(ContractError, match=f"mine_returned:Task: {said}"):
        first_batch(task(settings))


def test_a_maker(first_batch):
    with pytest.raises(ContractError, match=r"mine_returned:HalfMaker: .* of torch.float16"):
        first_batch(modality="mine_returned:Half")


def test_what_keeps_its_word_passes(first_batch):
    batch = first_batch(task("{classes: 3}"))
    assert np.isin(batch.targets["t"].numpy(), [0, 1, 2]).all()
