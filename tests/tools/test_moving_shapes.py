"""The clips of tools/bench/video_learning.py: classes are motions, and no frame shows them."""

import numpy as np
import pytest

from ..conftest import load_tool


@pytest.fixture(scope="module")
def shapes():
    return load_tool("moving_shapes")


def paths(shapes, number):
    """(motion, time, column and row and radius), all drawn alike."""
    return {m: shapes.path(m, np.random.default_rng([0, number])) for m in shapes.MOTIONS}


@pytest.mark.parametrize("number", range(3))
def test_all_motions_are_alike_in_the_middle_and_opposite_ones_run_backwards(shapes, number):
    drawn, middle = paths(shapes, number), shapes.FRAMES // 2
    places = np.stack([path[middle] for path in drawn.values()])
    np.testing.assert_allclose(places, places[:1].repeat(len(places), 0))
    for one, other in (("left", "right"), ("up", "down"), ("clockwise", "counterclockwise")):
        np.testing.assert_allclose(drawn[one][1:], drawn[other][:0:-1])
    np.testing.assert_allclose(drawn["grow"][1:], drawn["shrink"][:0:-1])
    assert len({path.tobytes() for path in drawn.values()}) == len(shapes.MOTIONS)


def test_clips_are_what_their_number_says(shapes):
    clip = shapes.clip(5, "left")
    assert clip.shape == (32, 64, 64, 3)
    assert np.array_equal(clip, shapes.clip(5, "left"))
    assert not np.array_equal(clip, shapes.clip(6, "left"))
    bright = clip.mean(-1) > clip.mean(-1).mean() + 30
    columns = [np.nonzero(frame)[1].mean() for frame in bright[12:20]]
    assert np.all(np.diff(columns) < 0.5)  # to the left, but for the grain
    assert columns[-1] < columns[0]
