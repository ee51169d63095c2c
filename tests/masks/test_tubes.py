"""Masks of clips: VideoMAE's tubes, the running cells of its decoder, V-JEPA's blocks."""

import math

import numpy as np
import pytest

from sslpipe.batch import ViewSpec
from sslpipe.errors import RecipeError
from sslpipe.masks import RunningCell, Tube, TubeBlocks, maskers
from sslpipe.recipe.names import Entry
from sslpipe.recipe.schema import MaskSection
from sslpipe.rng import Keys, Place

CLIP = ViewSpec("global", 1, "CTHW", (3, 16, 224, 224))
GRID = (8, 14, 14)


def drawn(sampler, grid=GRID, *, size=64, views=1, epoch=0, first=0):
    """(M, B, T, H, W), of the samples from `first` on."""
    uids = first + np.arange(size)
    keys = Keys(0, np.full(size, epoch), uids, np.arange(views))
    masks = sampler.draw(keys, Place(0, np.arange(size), size), "masks/m", grid)
    return masks.reshape(-1, size, *grid)


def built(name, settings=None, *, patch_size=(2, 16, 16), count=1, view=CLIP):
    entry = Entry(name, settings or {}, where="r.yaml:9")
    section = MaskSection(patch_size=patch_size, sampler=entry, count=count)
    return maskers({"m": section}, {"global": view})["m"]


@pytest.mark.parametrize(
    ("ratio", "plane"), [(0.5, 98), (0.75, 147), (0.8, 156), (0.85, 166), (0.9, 176), (0.95, 186)]
)
def test_tubes_hide_the_published_number_of_patches(ratio, plane):
    masks = drawn(Tube(ratio=ratio))
    assert Tube(ratio=ratio).hidden(GRID) == 8 * plane
    assert (masks.sum((3, 4)) == plane).all()


def test_a_tube_is_one_permutation_of_the_plane_repeated_over_time():
    masks = drawn(Tube(), size=2000)[0]
    assert (masks == masks[:, :1]).all()
    assert len(np.unique(masks[:, 0].reshape(2000, -1), axis=0)) == 2000
    share = masks[:, 0].mean(0)  # each place alike often: 4.5 sigma of 2,000 draws
    np.testing.assert_allclose(share, 176 / 196, atol=4.5 * math.sqrt(0.09 / 2000))


def test_a_sample_keeps_its_tube_beside_others_and_changes_it_with_the_epoch():
    alone, beside = drawn(Tube(), size=1, first=5), drawn(Tube(), size=9)
    assert (alone[0, 0] == beside[0, 5]).all()
    assert (drawn(Tube(), epoch=1)[0] != drawn(Tube())[0]).any()


def cells(grid, ratio, begin):
    """The official `Cell` and `RunningCellMaskingGenerator` by their rules, slowly."""
    masked = int(4 * ratio)
    queue, pointer, frames = [1] * masked + [0] * (4 - masked), begin, []
    for _ in range(grid[0]):
        pointer += 1
        cell = [queue[(place + pointer) % 4] for place in range(4)]
        frames.append([[cell[2 * (y % 2) + x % 2] for x in range(grid[2])] for y in range(grid[1])])
    return np.array(frames, dtype=bool)


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_running_cells_are_those_of_the_official_generator(ratio):
    sampler, masks = RunningCell(ratio=ratio), drawn(RunningCell(ratio=ratio))[0]
    official = np.array([cells(GRID, ratio, begin) for begin in range(4)])
    begins = [(official == mask).all((1, 2, 3)).argmax() for mask in masks]
    assert (official[begins] == masks).all()
    assert set(begins) == {0, 1, 2, 3}
    assert (masks.sum((1, 2, 3)) == sampler.hidden(GRID)).all()


def test_running_cells_need_whole_cells():
    with pytest.raises(RecipeError, match=r"^<recipe>: masks.m: a grid of 7 x 7 .*another patch"):
        built("running_cell", patch_size=(2, 32, 32))


def official_blocks(u_P, blocks, scale, grid):
    """`_sample_block_size` and `_sample_block_mask` of V-JEPA 2, from given uniforms."""
    _, height, width = grid
    keep, ratio = int(height * width * scale), 0.75 + u_P[0] * 0.75
    h = min(round(math.sqrt(keep * ratio)), height)
    w = min(round(math.sqrt(keep / ratio)), width)
    kept = np.ones(grid, dtype=int)
    for k in range(blocks):
        top, left = int(u_P[1 + 2 * k] * (height - h + 1)), int(u_P[2 + 2 * k] * (width - w + 1))
        kept[:, top : top + h, left : left + w] = 0
    return kept == 0


def test_blocks_are_a_slow_transcription_of_v_jepas():
    grid, size = (8, 16, 16), 40
    masks = drawn(TubeBlocks(), grid, size=size, views=2)
    for number, (blocks, scale) in enumerate(((8, 0.15), (2, 0.7))):
        keys = Keys(0, np.zeros(size, dtype=np.int64), np.arange(size), np.array([number]))
        u_BP = keys.uniforms("masks/tube_blocks", 1 + 2 * blocks)[0]
        slow = [official_blocks(u_P, blocks, scale, grid) for u_P in u_BP]
        left = ~np.array(slow).all((1, 2, 3))  # an empty context is drawn anew
        assert left.sum() > 30
        np.testing.assert_array_equal(masks[number][left], np.array(slow)[left])


def test_blocks_leave_the_published_shares():
    masks = drawn(TubeBlocks(), (8, 16, 16), size=4000, views=2)
    short, long = 1 - masks.mean((1, 2, 3, 4))
    assert short == pytest.approx(0.380, abs=0.006)
    assert long == pytest.approx(0.189, abs=0.006)


def test_context_and_targets_of_a_recipe_are_one_draw():
    sections = {
        name: MaskSection(
            patch_size=(2, 14, 14), count=2, sampler=Entry("tube_blocks", {}, where="r.yaml:9")
        )
        for name in ("context", "targets")
    }
    both = maskers(sections, {"global": CLIP})
    ids = np.arange(6)
    made = [
        each.draw(seed=3, epochs=0 * ids, uids=ids, place=Place(0, ids, 6))
        for each in both.values()
    ]
    np.testing.assert_array_equal(*made)
    assert both["context"].spec.hidden is None
    changed = sections["context"].model_copy(
        update={"sampler": Entry("tube_blocks", {"scale": [0.2, 0.7]}, where="r.yaml:9")}
    )
    with pytest.raises(RecipeError, match="are parts of one tube_blocks"):
        maskers({**sections, "context": changed}, {"global": CLIP})


def test_a_context_that_would_be_too_small_is_drawn_anew():
    greedy = TubeBlocks(blocks=(12,), scale=(0.6,), min_keep=8 * 30)
    masks = drawn(greedy, (8, 16, 16), size=300)[0]
    assert ((~masks).sum((1, 2, 3)) >= 8 * 30).all()
    free = drawn(TubeBlocks(blocks=(12,), scale=(0.6,)), (8, 16, 16), size=300)[0]
    assert ((~free).sum((1, 2, 3)) < 8 * 30).any()


def test_patches_of_clips_have_a_size_for_each_axis():
    spec = built("tube").spec
    assert (spec.axes, spec.patch, spec.grid, spec.patches) == ("THW", (2, 16, 16), GRID, 1568)
    assert spec.hidden == 1408
    assert built("random", patch_size=16).spec.grid == (1, 14, 14)
    assert built("random", {"ratio": 0.9}).spec.hidden == 1568 - int(1568 * (1 - 0.9))


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((2, 16), r"patch_size = \[2, 16\] has 2 sizes, but .* the 3 axes THW"),
        ((3, 16, 16), r"patch_size = \[3, 16, 16\] does not divide .* 16 x 224 x 224"),
    ],
)
def test_patches_that_do_not_suit_a_clip_are_refused(size, words):
    with pytest.raises(RecipeError, match=words):
        built("tube", patch_size=size)


@pytest.mark.parametrize("name", ["tube", "running_cell", "tube_blocks"])
def test_masks_of_clips_refuse_images(name):
    image = ViewSpec("global", 1, "CHW", (3, 224, 224))
    with pytest.raises(RecipeError, match="it masks clips"):
        built(name, patch_size=16, view=image)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"blocks": [8], "scale": [0.1, 0.2]}, "one number for each mask"),
        ({"blocks": [0], "scale": [0.1]}, "must be 1 or more"),
        ({"blocks": [2], "scale": [0.001]}, "makes empty blocks"),
        ({"blocks": [1], "scale": [0.99], "aspect": [1, 1], "min_keep": 400}, "leaves 0 patches"),
    ],
)
def test_blocks_that_cannot_be_are_refused(settings, words):
    with pytest.raises(RecipeError, match=words):
        built("tube_blocks", settings)
