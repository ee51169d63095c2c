"""Rotation and what all tasks share: keys, shapes, errors, no wait for the device."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

import sslpipe
from sslpipe.batch import ViewSpec
from sslpipe.errors import RecipeError
from sslpipe.modalities.image.targets import TASKS, pretext
from sslpipe.recipe import parse_recipe
from sslpipe.recipe.names import Entry

SIDES = {"colorization": 32, "jigsaw": 48, "relative_patch": 32, "rotation": 8, "rotation_one": 8}
SETTINGS = {
    "colorization": {"stride": 2},
    "jigsaw": {"cell": 16, "tile": 10, "chroma": 2, "projection": 0.5, "permutations": 20},
    "relative_patch": {"patch": 8, "gap": 3, "jitter": 1, "downsample_pixels": [9, 49]},
}


def build(name, **changes):
    spec = ViewSpec("global", 4 if name == "rotation" else 1, "CHW", (3, SIDES[name], SIDES[name]))
    entry = Entry(name, {**SETTINGS.get(name, {}), **changes}, "a.yaml:3")
    return pretext("task", entry, view="global", spec=spec), spec


def draw(task, uids, seed=0, epoch=0):
    uids = np.array(uids)
    return task.draw(seed=seed, epochs=np.full(len(uids), epoch), uids=uids)


def views_of(spec, uids):
    """Every sample's pixels are a function of its id."""
    shape = (spec.count, *spec.shape)
    made = [torch.rand(*shape, generator=torch.Generator().manual_seed(uid)) for uid in uids]
    return torch.stack(made, dim=1)


def apply(task, spec, uids, **place):
    table = draw(task, uids, **place)
    return task.task.apply(views_of(spec, uids), table, torch.from_numpy(table))


class NoWait(TorchDispatchMode):
    """Raises where a value of the device would have to come to the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.__name__.split(".")[0] not in ("_local_scalar_dense", "nonzero", "lift_fresh")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", sorted(TASKS))
def test_targets_and_views_are_as_declared_and_need_no_wait(name):
    task, spec = build(name)
    table = draw(task, [5, -3, 11])
    images, there = views_of(spec, [5, -3, 11]), torch.from_numpy(table)
    with NoWait():
        views, targets = task.task.apply(images, table, there)
    after = task.view_spec
    assert views.shape == (after.count, 3, *after.shape)
    assert targets.shape == (task.spec.count, 3, *task.spec.shape)
    assert torch.isfinite(views).all()
    if task.spec.classes is None:
        assert targets.dtype == torch.float32
    else:
        assert targets.dtype == torch.int64
        assert 0 <= targets.min() <= targets.max() < task.spec.classes


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_sample_s_task_does_not_know_its_neighbours(name):
    task, spec = build(name)
    views, targets = apply(task, spec, [5, -3, 11])
    alone, target = apply(task, spec, [11])
    assert torch.equal(views[:, 2:], alone)
    assert torch.equal(targets[:, 2:], target)


@pytest.mark.parametrize("name", ["jigsaw", "relative_patch", "rotation_one"])
def test_seeds_epochs_and_samples_draw_anew(name):
    task, _ = build(name)
    uids = list(range(40))
    first = draw(task, uids)
    assert np.array_equal(first, draw(task, uids))
    for other in (draw(task, uids, seed=1), draw(task, uids, epoch=1), first[:, ::-1]):
        assert (first != other).mean() > 0.2


@pytest.mark.parametrize("name", ["jigsaw", "relative_patch", "rotation_one"])
def test_all_classes_are_equally_likely(name):
    task, _ = build(name)
    table = draw(task, list(range(8000)))[0]
    labels = table if table.ndim == 1 else table[:, 0]
    counts = np.bincount(labels, minlength=task.spec.classes)
    expected = 8000 / task.spec.classes
    assert len(counts) == task.spec.classes
    assert abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_rotation_one_moves_pixels_and_loses_none():
    task, spec = build("rotation_one")
    uids = list(range(30))
    views, turns = apply(task, spec, uids)
    original = views_of(spec, uids)[0]
    assert set(turns[0].tolist()) == {0, 1, 2, 3}
    for b, turn in enumerate(turns[0].tolist()):
        assert torch.equal(torch.rot90(views[0, b], -turn, (-2, -1)), original[b])


def test_all_four_turns_are_pillow_s_in_the_official_order():
    task, spec = build("rotation")
    pixels = views_of(spec, [3])[:1].expand(4, -1, -1, -1, -1)  # draws: shared
    table = draw(task, [3])
    views, turns = task.task.apply(pixels, table, torch.from_numpy(table))
    assert turns[:, 0].tolist() == [0, 1, 2, 3]  # 0, 90, 180 and 270 degrees
    ways = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
    for turned, way in zip(views[1:, 0], ways, strict=True):
        for channel, original in zip(turned, pixels[0, 0], strict=True):
            expected = np.asarray(Image.fromarray(original.numpy()).transpose(way))
            np.testing.assert_array_equal(channel.numpy(), expected)


def test_views_that_do_not_suit_are_refused_before_any_data():
    wide = ViewSpec("global", 1, "CHW", (3, 8, 9))
    with pytest.raises(RecipeError, match=r"a.yaml:3: rotation_one: .* 8 x 9; make it square"):
        pretext("t", Entry("rotation_one", {}, "a.yaml:3"), view="global", spec=wide)
    for name, side in (("jigsaw", 255), ("relative_patch", 398)):
        with pytest.raises(RecipeError, match=f"make it 1 view of {side} x {side} px"):
            pretext(
                "t", Entry(name), view="global", spec=ViewSpec("global", 2, "CHW", (3, side, side))
            )
    with pytest.raises(RecipeError, match="stride = 3 divides"):
        build("colorization", stride=3)
    spec, match = (
        ViewSpec("global", 1, "CHW", (3, 32, 32)),
        r"pixels in \[0, 1\], but views.global.ops has Normalize",
    )
    with pytest.raises(RecipeError, match=match):
        pretext("t", Entry("colorization"), view="global", spec=spec, ops=["Normalize"])


CUT = """\
stream: {batch_size: 2}
views:
  global: {ops: [RandomResizedCrop: {size: [48, 48]}]}
targets:
  jigsaw: {task: {jigsaw: {cell: 16, tile: 8, permutations: 20}}}
"""


def test_a_task_sees_what_the_one_before_it_made_of_their_group(packed):
    text = CUT + "  turn: {task: rotation_one}\n"
    with sslpipe.load(parse_recipe(text), shards=packed, device="cpu") as pipe:
        batch = pipe.make_batch(pipe.load_share(0), 0)
        spec = pipe.spec
    assert (spec.views["global"].count, spec.targets["turn"].count) == (9, 9)
    assert batch.views["global"].shape == (9, 2, 3, 8, 8)
    assert batch.targets["turn"].shape == (9, 2)


def test_a_mask_over_views_that_a_task_cuts_up_is_refused(packed):
    text = CUT + "masks:\n  mine: {patch_size: 16, sampler: random}\n"
    match = (
        r"masks\.mine covers views\.global of 48 x 48 px, which a task makes 8 x 8; mask another"
    )
    with pytest.raises(RecipeError, match=match):
        sslpipe.load(parse_recipe(text), shards=packed, device="cpu")
