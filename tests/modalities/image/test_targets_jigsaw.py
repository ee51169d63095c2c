"""Jigsaws: the set of orders, the tiles, and what would give the order away."""

import itertools

import numpy as np
import pytest
import torch

from sslpipe.errors import RecipeError
from sslpipe.modalities.image.targets.jigsaw import JigsawTask, without_green_magenta
from sslpipe.modalities.image.targets.tiles import permutation_set

from .test_targets import apply, build, draw, views_of


def slow_set(items, count, rule, first):
    """`select_permutations.py` of JigsawPuzzlePytorch, one distance at a time."""
    left = list(itertools.permutations(range(items)))
    chosen = [left.pop(left.index(first))]
    while len(chosen) < count:

        def score(order):
            apart = [sum(a != b for a, b in zip(order, other, strict=True)) for other in chosen]
            return (min(apart), sum(apart)) if rule == "min" else sum(apart)

        chosen.append(left.pop(max(range(len(left)), key=lambda i: score(left[i]))))
    return chosen


@pytest.mark.parametrize("rule", ["mean", "min"])
@pytest.mark.parametrize(("items", "count"), [(4, 24), (5, 30)])
def test_orders_are_chosen_as_the_greedy_search_does(items, count, rule):
    found = [tuple(order) for order in permutation_set(items, count, rule, 3).tolist()]
    assert found == slow_set(items, count, rule, found[0])
    assert found[0] != permutation_set(items, count, rule, 4).tolist()[0]


@pytest.mark.parametrize(("rule", "least"), [("mean", 2), ("min", 6)])
def test_a_hundred_orders_are_as_far_apart_as_the_official_ones(rule, least):
    orders = permutation_set(9, 100, rule, 0)
    assert (np.sort(orders) == np.arange(9)).all()
    apart = (orders[:, None] != orders[None]).sum(-1)[np.triu_indices(100, 1)]
    assert apart.min() == least  # so they are all different
    assert apart.mean() == pytest.approx(8.08, abs=0.005)
    with pytest.raises(ValueError, match="read-only"):
        orders[0, 0] = 1


def cell_of(tiles, picture, cell):
    """Which cell every tile was cut from: its pixels hold their own place."""
    return (tiles[:, :, 0, 0, 0].long() // cell) * (picture // cell) + (
        tiles[:, :, 1, 0, 0].long() // cell
    )


def test_tile_v_is_the_one_that_the_order_names():
    """Not the inverse: view v shows cell order[v]."""
    task, _ = build("jigsaw", chroma=0, projection=0)
    rows, columns = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
    picture = torch.stack([rows, columns, rows]).expand(1, 50, 3, 48, 48)
    table = draw(task, list(range(50)))
    tiles, order = task.task.apply(picture, table, torch.from_numpy(table))
    shown = torch.from_numpy(task.task.orders[order[0]]).T
    assert torch.equal(cell_of(tiles, 48, 16), shown)
    assert not torch.equal(cell_of(tiles, 48, 16), shown.argsort(0))
    inner = tiles[:, :, :2] % 16  # (T, B, 2, h, w): no tile crosses its cell's edge
    assert torch.equal(inner[..., -1, -1] - inner[..., 0, 0], torch.full((9, 50, 2), 9.0))
    corners = inner[..., 0, 0]
    assert corners.min() == 0  # jitter reaches both ends of the gap
    assert corners.max() == 6


def test_pixels_are_copied_not_resampled():
    task, spec = build("jigsaw", chroma=0, projection=0)
    tiles, order = apply(task, spec, [7])
    picture, cell = views_of(spec, [7])[0, 0], int(task.task.orders[order[0, 0]][4])
    y, x = (16 * i for i in divmod(cell, 3))
    windows = picture[:, y : y + 16, x : x + 16].unfold(1, 10, 1).unfold(2, 10, 1)
    equal = (windows == tiles[4, 0][:, None, None]).all(-1).all(-1).all(0)
    assert equal.sum() == 1


def test_every_tile_moves_by_itself_over_all_of_its_gap():
    """Tiles that moved together would keep the lines that go on from one to the next."""
    task, _ = build("jigsaw", chroma=0)
    corners = draw(task, list(range(500)))[0, :, 2:].reshape(500, 9, 3, 2)[:, :, 0] % 16
    assert set(corners.flatten().tolist()) == set(range(7))
    coefficients = np.corrcoef(corners.reshape(500, 18).T)
    assert abs(coefficients - np.eye(18)).max() < 0.25  # 5 standard errors


def test_channels_of_a_tile_are_moved_apart_within_the_cell():
    task, _ = build("jigsaw", projection=0)
    rows = torch.arange(48.0)[:, None].expand(1, 200, 3, 48, 48)
    table = draw(task, list(range(200)))
    tiles, _ = task.task.apply(rows, table, torch.from_numpy(table))
    top = tiles[..., 0, 0] % 16
    apart = top.amax(-1) - top.amin(-1)
    assert set(apart.flatten().tolist()) == {0, 1, 2}
    assert top.max() == 6


def test_tiles_that_touch_are_refused():
    for tile, chroma in ((16, 0), (15, 1)):
        with pytest.raises(RecipeError, match="leave no gap in cells of 16 px"):
            build("jigsaw", tile=tile, chroma=chroma)
    with pytest.raises(RecipeError, match="must lie in"):
        build("jigsaw", grid=2, cell=24, permutations=25)
    with pytest.raises(RecipeError, match="grid = 4 must be 2 or 3"):
        build("jigsaw", grid=4, cell=12)


def test_projection_drops_green_magenta_and_leaves_grey():
    axis = torch.tensor([-1.0, 2.0, -1.0], dtype=torch.float64)
    official = torch.eye(3, dtype=torch.float64) - torch.outer(axis, axis) / (axis @ axis)
    images = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    expected = torch.einsum("ij,bjhw->bihw", official, images)
    torch.testing.assert_close(without_green_magenta(images), expected)
    grey = images[:, :1].expand(-1, 3, -1, -1)
    torch.testing.assert_close(without_green_magenta(grey), grey)


def test_projection_is_drawn_per_sample():
    task, _ = build("jigsaw")
    gates = draw(task, list(range(4000)))[0, :, 1]
    assert abs(gates.mean() - 0.5) < 0.04


def test_tiles_are_normalised_each_by_itself():
    task, spec = build("jigsaw", normalise="tile")
    tiles, _ = apply(task, spec, [1, 2])
    assert tiles.mean((-2, -1)).abs().max() < 1e-5
    torch.testing.assert_close(tiles.square().mean((-2, -1)), torch.ones(9, 2, 3))
    flat, _ = task.task.apply(*(lambda t: (torch.ones(1, 1, 3, 48, 48), t, torch.from_numpy(t)))(
        draw(task, [1])))  # fmt: skip
    assert flat.abs().max() < 1e-3


def test_defaults_are_those_of_vissl():
    task = JigsawTask()
    assert (task.grid * task.cell, task.cell - task.tile, task.permutations) == (255, 21, 2000)
