"""The contact sheet: masks lie over the view that they belong to."""

import numpy as np
import pytest
import torch

import sslpipe
from sslpipe.modalities.image.sheet import GREY, coloured, columns_of, stretched
from sslpipe.recipe import parse_recipe

RECIPE = """\
stream: {{batch_size: 8}}
views:
  global: {{count: 2, ops: [RandomResizedCrop: {{size: [128, 128]}}]}}
masks:
  mine: {{count: {count}, patch_size: 32, sampler: random}}
"""


@pytest.mark.parametrize(("count", "views"), [(2, [0, 1]), (1, [0]), (3, [0, 0, 0])])
def test_one_mask_per_view_lies_on_its_view_others_on_the_first(packed, count, views):
    recipe = parse_recipe(RECIPE.format(count=count))
    with sslpipe.load(recipe, shards=packed, device="cpu", rank=0, world_size=1) as pipe:
        batch = pipe.make_batch(pipe.load_share(0), 0)
        columns = list(columns_of(batch, pipe.spec, pipe.parts[0].decider.policies, 8))
    assert [column.title for column in columns[2:]] == [f"mask mine {m}" for m in range(count)]
    for m, view in enumerate(views):
        hidden = batch.masks["mine"][m].numpy().reshape(8, 4, 4).repeat(32, 1).repeat(32, 2)
        made, below = columns[2 + m].pictures_BHWC, columns[view].pictures_BHWC
        np.testing.assert_array_equal(made[~hidden], below[~hidden])
        assert (made[hidden] == GREY).all()
        assert columns[2 + m].captions == ["12 of 16 hidden"] * 8


def test_views_far_out_of_range_are_shown_by_their_own_range():
    dark = torch.linspace(0, 1, 12).view(1, 3, 2, 2)
    views = torch.cat([dark, 6 * dark - 3, dark - 0.05])
    shown = stretched(views)
    torch.testing.assert_close(shown[1], dark[0])  # standardised by a task
    assert torch.equal(shown[[0, 2]], views[[0, 2]])  # bicubic overshoot


@pytest.mark.parametrize("channels", [1, 3])
def test_lightness_is_drawn_as_grey_and_its_colours_over_it(packed, channels):
    text = RECIPE.split("masks:")[0].replace("count: 2", "count: 1").format()
    colour = parse_recipe(text)
    task = f"{{stride: 1, channels: {channels}}}"
    grey = parse_recipe(text + f"targets: {{c: {{task: {{colorization: {task}}}}}}}")
    made = []
    for recipe in (colour, grey):
        with sslpipe.load(recipe, shards=packed, device="cpu") as pipe:
            batch = pipe.make_batch(pipe.load_share(0), 0)
            made.append(list(columns_of(batch, pipe.spec, pipe.parts[0].decider.policies, 8)))
    (picture,), (lightness, target) = made
    assert lightness.pictures_BHWC.shape == (8, 128, 128, 3)
    assert (lightness.pictures_BHWC[..., :1] == lightness.pictures_BHWC).all()
    # of every pixel, and together with the lightness, they are the picture itself
    assert (target.title, target.captions[0]) == ("target c 0", "128 x 128 places")
    shown, real = (column.pictures_BHWC.astype(int) for column in (target, picture))
    assert abs(shown - real).max() <= 1
    assert abs(real - real[..., :1]).max() > 20  # they have colours


def test_colours_are_those_of_their_place():
    lightness, ab = torch.full((1, 3, 4, 4), 0.5), torch.zeros(1, 2, 2, 2)
    ab[0, 0, 0, 1] = 60.0  # red, upper right
    red, green, blue = np.moveaxis(coloured(lightness, ab)[0].astype(int), -1, 0)
    reddish = (red - green > 50) & (red - blue > 30)
    assert reddish.tolist() == [[False, False, True, True]] * 2 + [[False] * 4] * 2
