"""I-JEPA's context and targets against a slow transcription of the official collator."""

import math

import numpy as np
import pytest

from sslpipe.masks import Multiblock
from sslpipe.rng import Keys, Place

GRID = (16, 16)
CONTEXT, TARGETS = Multiblock(part="context"), Multiblock(part="targets")
SHARED = {"mode": "reference"}


def pair(*, size=32, step=0, mode="per_sample", grid=GRID, **settings):
    """(what the context encoder sees (B, H, W), targets (K, B, H, W))."""
    place = Place(step, np.arange(size), size)
    made = []
    for part, views in (("context", 1), ("targets", settings.get("blocks", 4))):
        keys = Keys(0, np.zeros(size, dtype=np.int64), np.arange(size), np.arange(views))
        sampler = Multiblock(part=part, mode=mode, **settings)
        made.append(sampler.draw(keys, place, f"masks/{part}", grid).reshape(views, size, *grid))
    return ~made[0][0], made[1]


def block_size(u, scale, aspect, grid):
    """`_sample_block_size` of src/masks/multiblock.py."""
    keep = int(grid[0] * grid[1] * (scale[0] + u * (scale[1] - scale[0])))
    ratio = aspect[0] + u * (aspect[1] - aspect[0])
    h, w = round(math.sqrt(keep * ratio)), round(math.sqrt(keep / ratio))
    while h >= grid[0]:
        h -= 1
    while w >= grid[1]:
        w -= 1
    return h, w


def block_mask(size, places, grid, regions, min_keep):
    """`_sample_block_mask`: place (top, left) by the next pair of uniforms until enough is left."""
    h, w = size
    tries, timeout, places = 0, 20, iter(places)
    while True:
        u = next(places)
        top, left = int(u[0] * (grid[0] - h)), int(u[1] * (grid[1] - w))
        mask = np.zeros(grid, dtype=int)
        mask[top : top + h, left : left + w] = 1
        for k in range(max(len(regions) - tries, 0)):
            mask *= regions[k]
        indices = np.flatnonzero(mask)
        if len(indices) > min_keep:
            break
        timeout -= 1
        if timeout == 0:
            tries, timeout = tries + 1, 20
    complement = np.ones(grid, dtype=int)
    complement[top : top + h, left : left + w] = 0
    return indices, complement


def collated(
    keys, size_keys, *, grid, blocks=4, min_keep=10, scale=(0.15, 0.2), context_scale=(0.85, 1.0)
):
    """Index lists of contexts and targets per sample, before the truncation."""
    name = "masks/multiblock"
    size_u = size_keys.uniforms(f"{name}/sizes", 2)[0]
    numbered = Keys(keys.seed, keys.epochs, keys.uids, np.arange(blocks))
    target_u = numbered.uniforms(f"{name}/targets", 2)
    context_u = keys.uniforms(f"{name}/contexts", 4 * 201).reshape(1, len(keys.uids), 201, 4)[0]
    contexts, targets = [], []
    for b in range(len(keys.uids)):
        target_size = block_size(size_u[b, 0], scale, (0.75, 1.5), grid)
        context_size = block_size(size_u[b, 1], context_scale, (1.0, 1.0), grid)
        made = [
            block_mask(target_size, [target_u[k, b]], grid, [], min_keep) for k in range(blocks)
        ]
        regions = [complement for _, complement in made]
        targets.append([indices for indices, _ in made])
        contexts.append(block_mask(context_size, context_u[b], grid, regions, min_keep)[0])
    return contexts, targets


def indices_of(masks_BHW):
    return [np.flatnonzero(mask) for mask in masks_BHW]


def same(found, want):
    assert len(found) == len(want)
    for a, b in zip(found, want, strict=True):
        np.testing.assert_array_equal(a, b)


# 9 large blocks on a small grid: the official code runs out of tries and drops regions
CROWDED = {"blocks": 9, "scale": (0.3, 0.4), "min_keep": 14,
           "context_scale": (0.4, 0.6)}  # fmt: skip


@pytest.mark.parametrize(("grid", "settings"), [(GRID, {}), ((14, 20), {}), ((8, 8), CROWDED)])
def test_per_sample_masks_are_the_official_ones_of_a_batch_of_one(grid, settings):
    seen, targets = pair(size=100, grid=grid, **settings)
    keys = Keys(0, np.zeros(100, dtype=np.int64), np.arange(100), np.arange(1))
    want_contexts, want_targets = collated(keys, keys, grid=grid, **settings)
    same(indices_of(seen), want_contexts)
    for k in range(targets.shape[0]):
        same(indices_of(targets[k]), [w[k] for w in want_targets])


@pytest.mark.parametrize("step", [0, 1, 2])
def test_reference_masks_are_the_official_ones_of_the_global_batch(step):
    seen, targets = pair(step=step, **SHARED)
    keys = Keys(0, np.full(32, step), np.arange(32), np.arange(1))
    same_size = Keys(0, np.full(32, step), np.zeros(32, dtype=np.int64), np.arange(1))
    want_contexts, want_targets = collated(keys, same_size, grid=GRID)
    least = min(len(context) for context in want_contexts)
    same(indices_of(seen), [context[:least] for context in want_contexts])
    for k in range(4):
        same(indices_of(targets[k]), [w[k] for w in want_targets])


def test_a_crowded_grid_gives_up_targets_but_never_patches():
    seen, targets = pair(grid=(8, 8), size=300, **CROWDED)
    overlap = (seen & targets.any(0)).any((1, 2))
    assert overlap.sum() > 0
    assert seen.sum((1, 2)).min() > 14


@pytest.mark.parametrize("mode", ["per_sample", "reference"])
def test_no_context_sees_a_target_and_nothing_touches_the_last_row_or_column(mode):
    for step in range(20):
        seen, targets = pair(size=64, step=step, mode=mode)
        assert not (seen & targets).any()
        for masks in (seen[None], targets):
            assert not masks[..., -1, :].any()
            assert not masks[..., :, -1].any()


def test_reference_sizes_are_those_of_the_authors():
    """16 x 16: targets of 35 to 54 patches, 44 on average; contexts shorter in larger batches."""
    sizes, contexts = [], []
    for step in range(400):
        seen, targets = pair(size=8, step=step, **SHARED)
        counts = targets.sum((2, 3))
        assert (counts == counts[0, 0]).all()
        assert len(set(seen.sum((1, 2)))) == 1
        sizes.append(counts[0, 0])
        contexts.append(seen[0].sum())
    assert (min(sizes), max(sizes)) == (35, 54)
    assert np.mean(sizes) == pytest.approx(44.3, abs=1.5)  # std 5.5
    assert min(contexts) > 40
    assert np.mean(contexts) == pytest.approx(86.5, abs=3.5)  # std 13


def test_context_shrinks_with_the_batch_that_it_is_cut_to():
    def shown(size):
        return np.mean([pair(size=size, step=s, **SHARED)[0][0].sum() for s in range(60)])

    assert shown(1) > shown(8) > shown(64) > 60


def test_per_sample_sizes_vary_within_a_batch_and_nothing_is_cut():
    seen, targets = pair(size=200)
    assert len(set(targets[0].sum((1, 2)))) == 5
    assert seen.sum((1, 2)).std() > 5
    kept = seen.mean(0)
    assert abs(kept[:7].mean() - kept[8:15].mean()) < 0.15  # cutting would favour upper rows


@pytest.mark.parametrize("side", [14, 16])
def test_published_contexts_are_all_but_targets_and_the_last_row_and_column(side):
    seen, targets = pair(grid=(side, side))
    np.testing.assert_array_equal(seen[:, :-1, :-1], ~targets.any(0)[:, :-1, :-1])


def test_one_number_drives_scale_and_aspect():
    _, targets = pair(size=400)
    heights = targets[0].any(2).sum(1)
    areas = targets[0].sum((1, 2))
    assert np.corrcoef(heights, areas)[0, 1] > 0.9


def test_names_of_the_masks_do_not_matter():
    place, keys = Place(0, np.arange(4), 4), Keys(0, np.zeros(4, int), np.arange(4), np.arange(4))
    a, b = (TARGETS.draw(keys, place, name, GRID) for name in ("masks/a", "masks/b"))
    np.testing.assert_array_equal(a, b)
    assert CONTEXT.hidden(GRID) is None
