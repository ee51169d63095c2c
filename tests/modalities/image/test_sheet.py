"""The contact sheet: masks lie over the view that they belong to."""

import numpy as np
import pytest
import torch

import sslpipe
from sslpipe.modalities.image.sheet import (
    GREY,
    LINE,
    MARGIN,
    coloured,
    originals,
    sheet,
    shown,
    stretched,
    tile_blocks,
)
from sslpipe.modalities.image.sheet_layout import Cells, arrange
from sslpipe.recipe import parse_recipe
from sslpipe.stream.source import Column

RECIPE = """\
stream: {{batch_size: 8}}
views:
  global: {{count: 2, ops: [RandomResizedCrop: {{size: [128, 128]}}]}}
masks:
  mine: {{count: {count}, patch_size: 32, sampler: random}}
"""


def drawn(recipe, shards):
    """Batch, decoded pictures, and blocks of a sheet of its first batch."""
    with sslpipe.load(recipe, shards=shards, device="cpu", rank=0, world_size=1) as pipe:
        share = pipe.load_share(0)
        batch = pipe.make_batch(share, 0)
        stored = Column([array.clone() for array in share.columns[0].arrays], *share.columns[0][1:])
        policies = pipe.parts[0].decider.policies
        return batch, stored, list(tile_blocks(batch, pipe.spec, policies, 8)), pipe.spec, policies


@pytest.mark.parametrize(("count", "views"), [(2, [0, 1]), (1, [0]), (3, [0, 0, 0])])
def test_one_mask_per_view_lies_on_its_view_others_on_the_first(packed, count, views):
    recipe = parse_recipe(RECIPE.format(count=count))
    batch, _, (group, masks), *_ = drawn(recipe, packed)
    assert group.titles == ["global: 2 x 128 x 128"] * 8
    assert [column.captions for column in group.columns] == [["view 0"] * 8, ["view 1"] * 8]
    assert masks.titles == ["mask mine of global: 16 patches"] * 8
    for m, view in enumerate(views):
        hidden = batch.masks["mine"][m].numpy().reshape(8, 4, 4).repeat(32, 1).repeat(32, 2)
        made, below = masks.columns[m].pictures_BHWC, group.columns[view].pictures_BHWC
        np.testing.assert_array_equal(made[~hidden], below[~hidden])
        assert (made[hidden] == GREY).all()
        assert masks.columns[m].captions == ["12 hidden"] * 8
    assert len(masks.columns) == len(views)


def test_every_picture_lies_in_the_band_of_its_sample_with_its_key_below(packed):
    batch, stored, blocks, spec, policies = drawn(parse_recipe(RECIPE.format(count=1)), packed)
    picture = np.asarray(sheet(batch, spec, policies, stored, rows=3))
    layout = arrange([block.cells for block in (originals(batch, stored, 3), *blocks)])
    band = layout.height + 2 * MARGIN
    assert picture.shape == (3 * band, layout.width + 2 * MARGIN, 3)
    for row in range(3):
        for block, corners in zip(blocks, layout.cells[1:], strict=True):
            for column, (x, y) in zip(block.columns, corners, strict=True):
                tile = column.pictures_BHWC[row]
                top, left = row * band + MARGIN + y, MARGIN + x
                there = picture[top : top + tile.shape[0], left : left + tile.shape[1]]
                np.testing.assert_array_equal(there, tile)
                below = picture[top + tile.shape[0] : (row + 1) * band - MARGIN, left:]
                assert (below[:LINE, :40] < 128).any()  # its caption
    key, size = originals(batch, stored, 3).columns[0].captions[1].splitlines()
    height, width = stored.arrays[1].shape[:2]
    assert (key, size) == (batch.keys[1], f"{width} x {height}")


def test_a_picture_decoded_at_a_fraction_says_its_sides_and_those_of_the_whole(packed):
    batch, stored, *_ = drawn(parse_recipe(RECIPE.format(count=1)), packed)
    height, width = stored.arrays[1].shape[:2]
    halves = [array[::2, ::2] for array in stored.arrays]
    captions = originals(batch, stored._replace(arrays=halves), 3).columns[0].captions
    made = f"{(width + 1) // 2} x {(height + 1) // 2}"
    assert captions[1].splitlines()[1] == f"{made} of {width} x {height}"


def test_the_decoded_picture_is_shown_as_it_is():
    small = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    factor = shown(small).shape[0] // 2
    np.testing.assert_array_equal(shown(small), small.repeat(factor, 0).repeat(factor, 1))
    large = np.full((300, 600, 3), 77, dtype=np.uint8)
    assert shown(large).shape == (112, 224, 3)
    assert (shown(large) == 77).all()


def test_ids_stand_where_they_belong(packed):
    """What is asked of each view below it, what is asked of all of them above them."""
    turned = RECIPE.split("masks:")[0].replace("count: 2", "count: 4, draws: shared").format()
    batch, _, (block,), *_ = drawn(
        parse_recipe(turned + "targets: {turn: {task: rotation}}"), packed
    )
    assert [c.captions[0] for c in block.columns] == [f"view {v}, turn {v}" for v in range(4)]
    one = RECIPE.split("masks:")[0].replace("count: 2", "count: 1").format()
    task = "{jigsaw: {grid: 2, cell: 64, tile: 48, permutations: 24}}"
    batch, _, (block,), *_ = drawn(parse_recipe(one + f"targets: {{j: {{task: {task}}}}}"), packed)
    orders = batch.targets["j"][0].tolist()
    assert block.titles == [f"global: 4 x 48 x 48, j {order}" for order in orders]
    assert block.columns[3].captions[0] == "view 3"


def test_blocks_are_stacked_and_wrapped_to_the_page():
    stored, large, small = Cells(1, 230, 250, 16), Cells(2, 230, 244, 16), Cells(8, 102, 116, 16)
    layout = arrange([stored, large, small], page=1400)  # DINO: 2 + 8
    assert layout.heads == [(0, 0), (248, 0), (248 + 460 + 18, 0)]
    assert layout.cells[1] == [(248, 16), (478, 16)]
    x = 726
    assert layout.cells[2] == [(x + 102 * (n % 4), 16 + 116 * (n // 4)) for n in range(8)]
    assert (layout.width, layout.height) == (x + 4 * 102, 16 + 250)

    narrow = arrange([stored, large, small], page=800)  # the second group in a line of its own
    assert narrow.heads[2] == (248, 16 + 244)
    many = arrange([stored, Cells(16, 230, 244, 16)], page=1400)  # evenly: 4 x 4, not 5 5 5 1
    assert many.cells[1][4] == (248, 16 + 244)
    for found in (layout, narrow, many):
        assert found.width <= 1400
        corners = [corner for block in found.cells for corner in block]
        assert len(set(corners)) == len(corners)
    assert arrange([stored, Cells(2, 900, 244, 16)], page=800).cells[1] == [(248, 16), (248, 260)]


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
    (plain,), (views, over) = (drawn(made, packed)[2] for made in (colour, grey))
    (picture,), (lightness,), (target,) = plain.columns, views.columns, over.columns
    assert lightness.pictures_BHWC.shape == (8, 128, 128, 3)
    assert (lightness.pictures_BHWC[..., :1] == lightness.pictures_BHWC).all()
    # of every pixel, and together with the lightness, they are the picture itself
    assert over.titles[0] == "target c, 128 x 128 places"
    shown, real = (column.pictures_BHWC.astype(int) for column in (target, picture))
    assert abs(shown - real).max() <= 1
    assert abs(real - real[..., :1]).max() > 20  # they have colours


def test_colours_are_those_of_their_place():
    lightness, ab = torch.full((1, 3, 4, 4), 0.5), torch.zeros(1, 2, 2, 2)
    ab[0, 0, 0, 1] = 60.0  # red, upper right
    red, green, blue = np.moveaxis(coloured(lightness, ab)[0].astype(int), -1, 0)
    reddish = (red - green > 50) & (red - blue > 30)
    assert reddish.tolist() == [[False, False, True, True]] * 2 + [[False] * 4] * 2
