"""Relative patches: places, gap and jitter, colours that are dropped, coarse patches."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sslpipe.errors import RecipeError
from sslpipe.modalities.image.targets.relative_patch import (
    RelativePatchTask,
    coarsened,
    even_noise,
    one_channel,
)
from sslpipe.philox import philox_torch

from .test_targets import apply, build, draw


def corners_of(table):
    """(B, 2, 2): upper left corners of both patches."""
    return table[0, :, 1:].reshape(-1, 2, 8)[..., :2]


def official_label(first, second):
    """`pos2lbl` of deepcontext, of where the second lies, in steps of the grid (x, y)."""
    y, x = np.sign(second - first)
    return {-1: x + 1, 0: (x + 7) // 2, 1: x + 6}[int(y)]


def test_the_label_is_where_the_second_patch_lies():
    built, _ = build("relative_patch")
    table = draw(built, list(range(2000)))
    corners = corners_of(table)
    steps = np.round((corners[:, 1] - corners[:, 0]) / 11)  # patch + gap = 11, jitter 1
    labels = [official_label(np.zeros(2), step) for step in steps]
    assert table[0, :, 0].tolist() == labels
    assert abs(corners[:, 1] - corners[:, 0] - steps * 11).max() == 2  # both jitter by 1
    assert corners.min() == 0  # all of the view is used, and no more
    assert corners.max() + 8 == 32


def test_patches_are_cut_where_the_table_says():
    task, _ = build("relative_patch", downsample=0.0)
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    picture = (100 * rows + columns).expand(1, 20, 3, 32, 32)
    table = draw(task, list(range(20)))
    patches, _ = task.task.apply(picture, table, torch.from_numpy(table))
    corners, kept = corners_of(table), table[0, :, 1:].reshape(-1, 2, 8)[..., 2]
    for b in range(20):
        for v in range(2):
            y, x = corners[b, v]
            cut = picture[0, b, 0, y : y + 8, x : x + 8]
            got = patches[v, b, kept[b, v]]
            correlation = torch.corrcoef(torch.stack([cut.flatten(), got.flatten()]))[0, 1]
            assert correlation > 0.9999
            # only the kept channel tells anything; its contrast and mean are taken away
            others = [c for c in range(3) if c != kept[b, v]]
            assert patches[v, b, others].abs().max() < 0.05
            assert got.mean().abs() < 1e-5
            assert patches[v, b].square().mean() == pytest.approx(1, abs=1e-4)


def test_noise_is_keyed_even_and_a_hundredth_of_what_is_kept():
    task, spec = build("relative_patch")
    patches, _ = apply(task, spec, [3, 4])
    again, _ = apply(task, spec, [3, 4], epoch=1)
    assert not torch.equal(patches, again)
    kept = torch.tensor([0, 2])
    key = torch.arange(8).view(2, 4)
    made = one_channel(torch.rand(2, 3, 32, 32), kept, key)
    for i, channel in enumerate(kept):
        others = [c for c in range(3) if c != channel]
        ratio = made[i, others].std() / made[i, channel].std()
        assert ratio == pytest.approx(0.01, rel=0.05)
        assert made[i, channel].mean().abs() < 1e-6
        assert not torch.equal(made[i, others[0]], made[i, others[1]])


def test_noise_is_philox_word_by_word():
    key = torch.tensor([11, 12, 13, 14])
    noise = even_noise(key, torch.Size([3, 2, 3]), torch.float64).flatten()
    words = []
    for block in range(5):
        counter = tuple(torch.tensor(n) for n in (block, 0, 13, 14))
        words += [int(w) for w in philox_torch(counter, (key[0], key[1]))]
    assert noise.tolist() == [(w >> 8) / 2**24 - 0.5 for w in words[:18]]


@pytest.mark.parametrize("side", [10, 37, 95])
def test_coarsening_is_an_antialiased_resize_and_back(side):
    patches = torch.rand(2, 3, 96, 96, dtype=torch.float64)
    made = coarsened(patches, torch.tensor([side, 96]))
    small = F.interpolate(patches, size=(side, side), mode="bilinear", antialias=True)
    back = F.interpolate(small, size=(96, 96), mode="bilinear", align_corners=False)
    torch.testing.assert_close(made[0], back[0], atol=1e-6, rtol=0)
    assert torch.equal(made[1], patches[1])


def test_a_third_of_the_patches_is_coarsened():
    task = RelativePatchTask()
    u = np.random.default_rng(0).random((2, 20000))
    sides = task.sides(*u)
    assert (sides < 96).mean() == pytest.approx(0.33, abs=0.01)
    assert (sides[sides < 96].min(), sides[sides < 96].max()) == (10, 94)
    # pixels are evenly drawn, and not sides; 6 standard errors
    areas = np.square(sides[sides < 96] + 0.5)
    assert areas.mean() == pytest.approx((100 + 9025) / 2, rel=0.05)
    assert task.side == 398


def test_patches_of_a_pair_are_jittered_thinned_and_coarsened_each_by_itself():
    built, _ = build("relative_patch")
    table = draw(built, list(range(3000)))
    place, patches_B28 = table[0, :, 0], table[0, :, 1:].reshape(-1, 2, 8)
    assert set(place.tolist()) == set(range(8))
    channels = patches_B28[..., 2]
    assert (
        np.bincount(3 * channels[:, 0] + channels[:, 1]).min() > 3000 / 9 - 90
    )  # 5 standard errors
    coarse = patches_B28[..., 3] < 8
    assert abs(np.corrcoef(coarse.T)[0, 1]) < 0.1
    jitter = (corners_of(table) % 11).reshape(-1, 4)
    assert abs(np.corrcoef(jitter.T) - np.eye(4)).max() < 0.1


def test_edges_that_may_go_on_are_refused():
    with pytest.raises(RecipeError, match="gap = 2 px is closed by jitter = 1"):
        build("relative_patch", gap=2)
    with pytest.raises(RecipeError, match=r"downsample_pixels = \[9, 65\]"):
        build("relative_patch", downsample_pixels=[9, 65])
    with pytest.raises(RecipeError, match="jitter = 0 must be 1 or more"):
        build("relative_patch", jitter=0)
