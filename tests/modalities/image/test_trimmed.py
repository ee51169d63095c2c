"""Workers leave out what no view reads, and nothing else changes for it."""

import numpy as np
import pytest
import torch
from PIL import Image

import sslpipe
from sslpipe.device.slots import Slots
from sslpipe.modalities.image import ImageModality, jpeg
from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.modalities.parts import modality_of
from sslpipe.recipe import find_recipe, load_recipe, parse_recipe
from sslpipe.shards import PackSettings, pack
from sslpipe.stream.tasks import DECODE, TRIMMED

from .test_scale import photo

NAMES = [name for name, path in sorted(sslpipe.recipes().items()) if path.parent.name == "image"]
RECIPE = """
modality: image
stream: {batch_size: 8, seed: 3}
views:
  global:
    count: 1
    ops:
      - RandomResizedCrop: {size: [48, 48], scale: [0.1, 0.3]}
      - RandomHorizontalFlip: {}
run: {workers: 0}
"""
TURNED = 1, 2, 3, 6  # EXIF's orientations


@pytest.fixture(scope="module", autouse=True)
def compiled():
    jpeg.prepare()
    assert jpeg.loaded()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Eight photos of several sizes, some of them turned, and a PNG."""
    folder, out = tmp_path_factory.mktemp("photos"), tmp_path_factory.mktemp("shards") / "photos"
    for i in range(8):
        exif = Image.Exif()
        exif[0x0112] = TURNED[i % 4] if i < 4 else 1
        picture = Image.fromarray(photo(130 + 10 * i, 130 + (20 * i if i % 3 else 10 * i), i))
        picture.save(folder / f"{i}.{'png' if i == 7 else 'jpg'}", exif=exif, quality=90)
    pack(folder, out, PackSettings(codec=ImageCodec()))
    return out


@pytest.fixture
def poison(monkeypatch):
    """Has all memory of slots filled with a byte before anything is decoded into it."""
    take = Slots.take

    def fill(byte):
        def filled(slots, size):
            slot = take(slots, size)
            slot.memory.fill(byte)
            return slot

        monkeypatch.setattr(Slots, "take", filled)

    return fill


def loaded(recipe, shards):
    return sslpipe.load(recipe, shards=shards, device="cpu", rank=0, world_size=1)


def small(name, *overrides):
    """A recipe of ours for batches of eight, two to a group of batch norm perhaps."""
    few = ["stream.batch_size=8", "stream.allow_repeats=true", "stream.lanes=null", "run.threads=1"]
    return load_recipe(find_recipe(name), overrides=[*few, *overrides])


def canvases(share):
    return [canvas.numpy().copy() for canvas in share.columns[0].arrays]


def told(pipe, kind=TRIMMED):
    """What workers are told of step 0."""
    return pipe.loading._loader._flights.book(pipe.source.planned([0]), kind)[0].instructions[0]


def same_views(one, other):
    assert one.keys == other.keys
    for name in one.views:
        assert torch.equal(one.views[name], other.views[name]), name


@pytest.mark.parametrize("executor", ["auto", "kornia"])
@pytest.mark.parametrize("name", NAMES)
def test_views_are_those_of_whole_canvases_whatever_stands_outside_the_boxes(
    photos, poison, name, executor
):
    with loaded(small(name, "run.workers=0", f"run.executor={executor}"), photos) as pipe:
        truth = pipe.make_batch(pipe.load_share(0), 0)
        for byte in (0, 255):
            poison(byte)
            same_views(pipe.make_batch(pipe.loading.load_ahead(0, end=1), 0), truth)


def test_workers_make_the_same_and_leave_pixels_out(photos, poison):
    made = []
    for workers in (0, 2):
        recipe = parse_recipe(RECIPE, path="test.yaml", overrides=[f"run.workers={workers}"])
        with loaded(recipe, photos) as pipe:
            whole = canvases(pipe.load_share(0))
            poison(9)
            share = pipe.loading.load_ahead(0, end=1)
            made.append(pipe.make_batch(share, 0))
            left = [(part == 9).all(-1).mean() for part in canvases(share)]
            corners = told(pipe)[:, 1:]
            for part, all_of_it, (first, last) in zip(
                canvases(share), whole, corners.tolist(), strict=True
            ):
                inside = np.s_[first >> 16 : last >> 16, first & 0xFFFF : last & 0xFFFF]
                np.testing.assert_array_equal(part[inside], all_of_it[inside])
            assert sum(each > 0.3 for each in left) == 4  # the others are turned, or the PNG
    same_views(*made)


def test_shares_that_somebody_may_look_at_are_whole(photos, poison):
    with loaded(parse_recipe(RECIPE, path="test.yaml"), photos) as pipe:
        before = canvases(pipe.load_share(0))
        poison(9)
        after = canvases(pipe.load_share(0))
        assert all(np.array_equal(*pair) for pair in zip(before, after, strict=True))
        assert told(pipe, DECODE).shape == (8, 1)


def test_sides_that_an_index_has_wrong_make_it_whole(photos, poison):
    """Then boxes are drawn anew, for the picture that there is."""
    with loaded(parse_recipe(RECIPE, path="test.yaml"), photos) as pipe:
        truth = pipe.make_batch(pipe.load_share(0), 0)
        records = type(pipe.source).records

        def wrong(source, wants):
            found = records(source, wants)
            found.samples["extent"][:, 0] += 8
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(pipe.source), "records", wrong)
            poison(9)
            same_views(pipe.make_batch(pipe.loading.load_ahead(0, end=1), 0), truth)


class OwnModality(ImageModality):
    """Somebody's own, whose decoder, maker or sheet may look at all of a canvas."""


MODALITY = OwnModality()


@pytest.mark.parametrize(
    "overrides",
    [
        [f"modality={__name__}:MODALITY"],
        ["views.global.ops=[{Resize: {size: [48, 48]}}]"],
        ["decode={size: 100}"],
        ["decode={device: cuda}"],
    ],
)
def test_what_needs_the_whole_picture_is_told_no_box(photos, overrides):
    recipe = parse_recipe(RECIPE, path="test.yaml", overrides=overrides)
    uids = np.arange(3)
    extents = np.tile([300, 400, 0, 0], (3, 1))
    decider = modality_of(recipe, "global").decider(recipe, ["global"])
    drawn = decider.draw_ahead(epochs=0 * uids, uids=uids, extents=extents)
    assert drawn.told.shape == (3, 1)


def test_boxes_are_those_of_all_views_and_no_finer_scale_is_drawn_twice():
    recipe = small("dino", "decode={scaled: auto}")
    uids, extents = np.arange(40), np.tile([375, 500, 0, 0], (40, 1))
    extents[::4] *= 6
    decider = ImageModality().decider(recipe, [*recipe.views])
    asked = {"epochs": 0 * uids, "uids": uids, "extents": extents}
    drawn = decider.draw_ahead(**asked)
    assert (drawn.told[:, :1] == decider.instructions(**asked)).all()
    assert (drawn.told[::4, 0] > 1).any()
    for n, (factor, first, last) in enumerate(drawn.told.tolist()):
        boxes = np.concatenate([table[:, n, :4] for table in drawn.params.values()])
        x, y = boxes[:, :2].min(0)
        right, below = (boxes[:, :2] + boxes[:, 2:]).max(0)
        box = (int(y) << 16 | int(x), int(below) << 16 | int(right))
        assert (first, last) == (box if factor == 1 else jpeg.WHOLE)
