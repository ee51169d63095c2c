"""How often the generator is called to decide a batch: a bounded number of times, not by sample."""

import numpy as np
import pytest

from sslpipe import rng
from sslpipe.modalities.image.decider import ImageDecider
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
    [("simclr", 1), ("dino", 2), ("mae", 2), ("ijepa", 6), ("beit", 16), ("jigsaw", 2)],
)
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
