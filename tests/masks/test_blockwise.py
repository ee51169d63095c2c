"""Masks of blocks against slow transcriptions of the official generators, fed the same numbers.

Bounds of statistics: 5 standard errors at the sample sizes here (a false alarm is rarer than
1 in 10**6), besides the rounding of the reference figures.
"""

import math

import numpy as np
import pytest

from sslpipe.masks import Blockwise, DINOv2Blocks, IBotBlocks
from sslpipe.masks.blockwise import Blocks
from sslpipe.permutations import permutation
from sslpipe.rng import Keys, Place

STREAM = "masks/mine"
MANY = 4000


def keys_of(size, views=1, seed=0):
    return Keys(seed, np.zeros(size, dtype=np.int64), np.arange(size), np.arange(views))


def drawn(sampler, *, size=MANY, views=1, grid=(14, 14), step=0, seed=0):
    place = Place(step, np.arange(size), size)
    return sampler.draw(keys_of(size, views, seed), place, STREAM, grid)


def grown(target, uniforms, grid, least, most=None):
    """unilm/beit/masking_generator.py for one mask; attempt k takes the numbers uniforms[k]."""
    hidden, count, attempts = np.zeros(grid, dtype=bool), 0, iter(uniforms)
    while count < target:
        room = target - count if most is None else min(target - count, most)
        delta = one_block(hidden, attempts, room, least)
        if delta == 0:
            break
        count += delta
    return hidden.ravel()


def one_block(hidden, attempts, room, least, aspect=0.3):
    """Its `_mask`: up to ten attempts at one block, which is hidden in place."""
    height, width = hidden.shape
    low, high = math.log(aspect), math.log(1 / aspect)
    for _ in range(10):
        u = next(attempts)
        area = least + (room - least) * u[0]
        ratio = math.exp(low + (high - low) * u[1])
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if w < width and h < height:
            top, left = int(u[2] * (height - h + 1)), int(u[3] * (width - w + 1))
            delta = h * w - hidden[top : top + h, left : left + w].sum()
            if 0 < delta <= room:
                hidden[top : top + h, left : left + w] = True
                return delta
    return 0


def attempts_of(keys):
    return keys.uniforms(STREAM, 4 * 400).reshape(len(keys.views), len(keys.uids), 400, 4)


@pytest.mark.parametrize(
    ("patches", "least", "most", "grid"),
    [(75, 16, None, (14, 14)), (118, 16, None, (14, 14)), (128, 4, 128, (16, 16)),
     (30, 40, None, (14, 14)), (40, 4, 12, (8, 16))],
)  # fmt: skip
def test_blocks_are_those_of_beit_s_generator(patches, least, most, grid):
    sampler = Blockwise(patches=patches, min_patches=least, max_patches=most)
    made = drawn(sampler, size=100, views=2, grid=grid)
    uniforms = attempts_of(keys_of(100, views=2))
    for v, b in np.ndindex(2, 100):
        want = grown(patches, uniforms[v, b], grid, least, most)
        np.testing.assert_array_equal(made[v, b], want)


def test_beit_v1_hides_about_75_in_blocks():
    hidden = drawn(Blockwise())[0]
    counts = hidden.sum(1)
    assert counts.mean() == pytest.approx(74.47, abs=0.08)  # std 0.98
    assert (counts == 75).mean() == pytest.approx(0.67, abs=0.04)
    assert counts.max() == 75
    assert 60 <= counts.min() <= 68
    grid = hidden.reshape(-1, 14, 14)
    alike = [(grid[:, 1:] == grid[:, :-1]).mean(), (grid[..., 1:] == grid[..., :-1]).mean()]
    assert np.mean(alike) == pytest.approx(0.89, abs=0.006)
    rate = grid.mean(0)
    assert rate[6:8, 6:8].mean() == pytest.approx(0.718, abs=0.03)
    assert rate[[0, 0, -1, -1], [0, -1, 0, -1]].mean() == pytest.approx(0.042, abs=0.01)


def test_beit_v2_adds_single_patches_up_to_the_count():
    v1, v2 = drawn(Blockwise(), size=500)[0], drawn(Blockwise(finish="complete"), size=500)[0]
    assert (v2.sum(1) == 75).all()
    assert (v2 | ~v1).all()  # nothing that v1 hides is shown
    assert not np.array_equal(v1, v2)


def test_ibot_takes_an_entry_then_a_share_then_grows_blocks():
    keys = keys_of(150, views=2)
    hidden = IBotBlocks().draw(keys, Place(0, np.arange(150), 150), STREAM, (14, 14))
    entry, within = np.moveaxis(keys.uniforms(f"{STREAM}/ratio", 2), -1, 0)
    uniforms = attempts_of(keys)
    for v, b in np.ndindex(2, 150):
        ratio = 0.1 + 0.4 * within[v, b] if entry[v, b] >= 0.5 else 0.0
        want = grown(ratio * 196, uniforms[v, b], (14, 14), (14 // 3) ** 2)
        np.testing.assert_array_equal(hidden[v, b], want)


def test_ibot_leaves_half_of_the_views_whole():
    counts = drawn(IBotBlocks(), views=2).sum(-1)
    np.testing.assert_allclose((counts == 0).mean(1), 0.5, atol=0.04)
    assert counts[counts > 0].max() <= 0.5 * 196
    assert counts[counts > 0].mean() / 196 == pytest.approx(0.29, abs=0.012)  # of U(.1, .5)
    both = (counts == 0).all(0).mean()
    assert both == pytest.approx(0.25, abs=0.035)  # views of one image toss on their own
    always = drawn(IBotBlocks(ratio=(0.3,), spread=(0.0,)), size=300).sum(-1)
    assert always.min() > 0.25 * 196
    assert always.max() <= 58


@pytest.mark.parametrize(
    ("target", "mean", "least", "reached"),
    [(26, 25.93, 23, 0.93), (77, 76.91, 71, 0.92), (128, 127.91, 105, 0.91)],
)
def test_dinov2_s_blocks_reach_their_target_in_nine_of_ten(target, mean, least, reached):
    budgets = np.full((1, MANY), float(target))
    counts = Blocks(4, 128, 0.3).grow(budgets, keys_of(MANY), STREAM, (16, 16)).sum(-1)
    assert counts.mean() == pytest.approx(mean, abs=0.045)
    assert (counts == target).mean() == pytest.approx(reached, abs=0.025)
    assert counts.min() >= least
    assert (counts >= target - 2).mean() > 0.99


def test_dinov2_per_sample_tosses_a_coin_for_every_view():
    counts = drawn(DINOv2Blocks(), views=2, grid=(16, 16)).sum(-1)
    np.testing.assert_allclose((counts == 0).mean(1), 0.5, atol=0.04)
    assert (counts == 0).all(0).mean() == pytest.approx(0.25, abs=0.035)
    shares = counts[counts > 0] / 256
    assert 0.08 < shares.min() < shares.max() <= 0.5
    assert shares.mean() == pytest.approx(0.297, abs=0.01)


@pytest.mark.parametrize("ratio", [(0.1, 0.5), (0.6, 0.8)])  # the second meets the largest block
def test_dinov2_reference_is_the_official_collation_over_the_global_batch(ratio):
    """collate.py: one view per bin, generated, the rest empty, all shuffled."""
    size, views, step, grid = 20, 2, 5, (16, 16)
    sampler = DINOv2Blocks(mode="reference", ratio=ratio)
    hidden = drawn(sampler, size=size, views=views, grid=grid, step=step)
    slots = Keys(0, np.full(size, step), np.arange(size), np.arange(views))
    within = slots.uniforms(f"{STREAM}/ratio", 1)
    name = f"{STREAM}/ratio/order"
    order = permutation(size * views, seed=0, epoch=step, stream=name).reshape(views, size)
    edges = np.linspace(*ratio, int(size * views * 0.5) + 1)
    uniforms = attempts_of(keys_of(size, views))
    for v, b in np.ndindex(views, size):
        i, target = order[v, b], 0
        if i < 20:
            target = int(256 * (edges[i] + (edges[i + 1] - edges[i]) * within[v, b, 0]))
        want = grown(target, uniforms[v, b], grid, 4, 128)
        np.testing.assert_array_equal(hidden[v, b], want)


@pytest.mark.parametrize(("size", "probability"), [(64, 0.5), (33, 0.3), (1, 0.5)])
def test_dinov2_reference_masks_an_exact_number_of_views_and_every_bin(size, probability):
    sampler = DINOv2Blocks(mode="reference", probability=probability, finish="complete")
    for step in range(5):
        counts = drawn(sampler, size=size, views=2, grid=(16, 16), step=step).sum(-1)
        masked = int(2 * size * probability)
        assert (counts > 0).sum() == masked
        edges = 256 * np.linspace(0.1, 0.5, masked + 1)
        bins = np.sort(counts[counts > 0])
        assert (np.floor(edges[:-1]) <= bins).all()
        assert (bins <= edges[1:]).all()


def test_dinov2_reference_shuffles_over_views_and_slots():
    hits = np.zeros((2, 16))
    for step in range(400):
        hits += drawn(DINOv2Blocks(mode="reference"), size=16, views=2, step=step).any(-1)
    np.testing.assert_allclose(hits / 400, 0.5, atol=0.15)  # 6 standard errors for each of 32
