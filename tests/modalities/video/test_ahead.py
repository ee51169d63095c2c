"""What is drawn for many steps in one go, before videos are decoded: nothing else than later."""

import numpy as np
import pytest
import torch

import sslpipe
from sslpipe.modalities.image.decode import shrunk
from sslpipe.modalities.parts import parts_of
from sslpipe.modalities.video.decode import shrunk_sides
from sslpipe.recipe import parse_recipe
from sslpipe.rng import Place

RECIPE = """
modality: video
stream: {batch_size: 6}
views:
  global:
    count: 2
    ops:
      - IntervalClips: {frames: 5, stride: 2, per_frame: [RandomHorizontalFlip]}
      - RandomResizedCrop: {size: [24, 24], scale: [0.3, 1.0]}
      - RandomHorizontalFlip: {p: 0.5}
  local:
    ops:
      - UniformClip: {frames: 3, stride: 4, rate: 30}
      - RandomResizedCrop: {size: [16, 16], scale: [0.1, 0.3]}
masks:
  tube: {view: local, patch_size: [3, 4, 4], sampler: tube}
decode: {size: SIZE}
run: {workers: 0}
"""


@pytest.mark.parametrize("size", ["null", "23", "40"])
def test_tables_that_are_drawn_ahead_are_those_of_the_batch(videos, size):
    """Frames of 32 x 64 and 64 x 32 px, shrunk to 23 x 46 and so on before crops are drawn."""
    recipe = parse_recipe(RECIPE.replace("SIZE", size), path="video.yaml")
    with sslpipe.load(recipe, shards=videos, device="cpu", rank=0, world_size=1) as pipe:
        (part,) = pipe.parts
        for step in range(3):
            share = pipe.loading.load_ahead(step)
            (column,), (drawn,) = share.columns, share.drawn
            named = {"epochs": share.epochs, "uids": share.uids}
            assert drawn.are_of(extents=column.extents, **named)
            named["place"] = Place(step, np.arange(6), 6)
            once, ahead = (part.decide(column, drawn=tables, **named) for tables in (None, drawn))
            for tables in ("params", "masks"):
                told, wanted = getattr(ahead, tables), getattr(once, tables)
                assert told.keys() == wanted.keys()
                assert wanted
                for name, table in wanted.items():
                    np.testing.assert_array_equal(told[name], table)


def test_nothing_is_drawn_ahead_for_videos_that_an_index_does_not_know():
    recipe = parse_recipe(RECIPE.replace("SIZE", "null"), path="video.yaml")
    (part,) = parts_of(recipe, device=torch.device("cpu"), threads=None)
    ids = np.arange(2)
    known = np.array([[40, 32, 64, 16_000], [12, 32, 64, 0]])  # a rate may well be unknown
    assert part.draw_ahead(epochs=0 * ids, uids=ids, extents=known)
    known[1] = 0
    assert part.draw_ahead(epochs=0 * ids, uids=ids, extents=known) is None


def test_sides_of_shrunk_frames_are_those_of_each():
    sides = np.array([[32, 64], [64, 32], [23, 500], [24, 24], [333, 777], [0, 0]])
    for size in (None, 1, 23, 24, 600):
        made = [shrunk(*pair, size) for pair in sides.tolist()]
        np.testing.assert_array_equal(shrunk_sides(sides, size), made)
