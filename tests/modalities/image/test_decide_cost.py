"""How often the generator is called to decide a batch: a bounded number of times, not by sample."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from sslpipe import rng
from sslpipe.modalities.image.decider import ImageDecider
from sslpipe.modalities.image.draws import Policy, Step, draw
from sslpipe.modalities.image.ops import CenterCrop, Draw, RandomResizedCrop, uniform_blocks
from sslpipe.recipe import find_recipe, load_recipe
from sslpipe.rng import Keys, Place


def decide(decider, samples):
    numbers = np.arange(samples)
    decider.decide(
        epochs=0 * numbers,
        uids=numbers,
        place=Place(0, numbers, samples),
        extents=np.tile([375, 500], (samples, 1)),
    )


@pytest.mark.parametrize(
    ("recipe", "most"),
    [("simclr", 2), ("dino", 4), ("mae", 3), ("ijepa", 7), ("beit", 17), ("jigsaw", 3)],
)  # one of each group is for the few boxes that need more attempts
def test_the_generator_is_called_a_few_times_a_batch(recipe, most, monkeypatch):
    calls, drawn = [], rng.draw_blocks
    monkeypatch.setattr(
        rng, "draw_blocks", lambda *given, **named: calls.append(1) or drawn(*given, **named)
    )
    made = load_recipe(find_recipe(recipe))
    decider = ImageDecider.of_recipe(made, tuple(made.views))
    for samples in (8, 256):
        calls.clear()
        decide(decider, samples)
        assert len(calls) <= most


def test_streams_drawn_together_are_those_drawn_alone():
    keys = Keys(3, np.array([0, 1, 1]), np.array([5, -6, 7]), np.arange(2))
    counts = {"a": 22, "b": 1, "c": 0, "d": 9}
    for stream, drawn in keys.together(counts).items():
        assert np.array_equal(drawn, keys.uniforms(stream, counts[stream]))
    assert keys.together({}) == {}


def slow_box(u_22, sides, scale, ratio):
    """torchvision's ten attempts, one by one, then its central crop."""
    height, width = sides
    for portion, aspect in u_22[:20].reshape(10, 2):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * portion)
        low, high = np.log(ratio)
        shape = np.exp(low + (high - low) * aspect)
        w, h = np.rint(np.sqrt(area * shape)), np.rint(np.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            return np.floor(u_22[20] * (width - w + 1)), np.floor(u_22[21] * (height - h + 1)), w, h
    aspect = np.clip(width / height, *ratio)
    w, h = min(width, np.rint(height * aspect)), min(height, np.rint(width / aspect))
    return (width - w) // 2, (height - h) // 2, w, h


def test_boxes_that_need_many_attempts_are_those_of_all_ten():
    """Of narrow pictures most attempts fail, and some of them all ten."""
    sides_B2 = np.array([(300, 60), (40, 90), (64, 64), (500, 375)] * 40)
    uids, epochs = np.arange(160) * 7919, np.arange(160) % 3
    keys, op = Keys(5, epochs, uids, np.arange(2)), RandomResizedCrop(size=(32, 32))
    boxes_VB4 = op.draw(Draw(keys, "crop", sides_B2, (32, 32)))
    u_VBP = keys.uniforms("crop", 22)
    for v in range(2):
        for b, sides in enumerate(sides_B2.tolist()):
            wanted = slow_box(u_VBP[v, b], sides, op.scale, op.ratio)
            assert tuple(boxes_VB4[v, b]) == wanted
    tried = (boxes_VB4[:, ::4, 2] == 60).sum()
    assert 0 < tried < 80  # the whole width: the central crop, of some


@dataclass(frozen=True, kw_only=True)
class Plain:
    """A user's op that says nothing of what it asks for."""

    columns: ClassVar = ("a", "b")

    def draw(self, source):
        return source.uniforms(2)

    def apply(self, images_RCHW, rows_RP):
        return images_RCHW


@dataclass(frozen=True, kw_only=True)
class Told(Plain):
    """The same, which says it."""

    numbers: ClassVar = 2


def test_an_op_that_says_how_much_it_draws_draws_the_same_in_one_call_less(monkeypatch):
    calls, drawn, tables = [], rng.draw_blocks, []
    monkeypatch.setattr(
        rng, "draw_blocks", lambda *given, **named: calls.append(1) or drawn(*given, **named)
    )
    keys, sides_B2 = Keys(3, np.zeros(5, np.int64), np.arange(5), np.arange(2)), np.full((5, 2), 9)
    crop = CenterCrop(size=(8, 8))
    for op, most in ((Plain(), 2), (Told(), 1)):
        steps = (
            Step(crop, "crop", 0, "crop", uniform_blocks(crop)),
            Step(op, "s", 4, "s", uniform_blocks(op)),
        )
        calls.clear()
        tables.append(draw(Policy("g", 2, False, steps, tuple("xywhab")), keys, sides_B2))
        assert len(calls) == most
    assert (tables[0] == tables[1]).all()
    assert (tables[0][..., 4:] == keys.uniforms("s", 2).astype(np.float32)).all()
    assert [*uniform_blocks(RandomResizedCrop(size=(8, 8)))] == [0, 5]
