"""Augment: a recipe's views of images that others decoded, the same as the pipeline's."""

import copy
import pickle

import pytest
import torch

from sslpipe.augment import Augment
from sslpipe.errors import RecipeError, SslpipeError
from sslpipe.recipe import parse_recipe

from .conftest import RECIPE
from .streaming import load

IMAGES = torch.randint(0, 256, (4, 3, 50, 60), dtype=torch.uint8)


def made(*overrides, **where):
    return Augment(parse_recipe(RECIPE, path="test.yaml", overrides=overrides), **where)


def test_views_are_those_of_the_pipeline(packed):
    with load(packed, "decode={scaled: never}") as pipe:
        (column,) = pipe.load_share(0).columns
        images = [canvas.permute(2, 0, 1).clone() for canvas in column.arrays]
        batch = next(iter(pipe))
    views = made()(images, ids=batch.uids, epoch=0)["global"]
    assert torch.equal(views, batch.views["global"])


def test_an_images_views_are_its_own():
    augment = made()
    whole = augment(IMAGES, ids=[3, 4, 5, 6])["global"]
    alone = augment([IMAGES[2]], ids=[5])["global"]
    assert torch.equal(alone[:, 0], whole[:, 2])
    assert not torch.equal(augment(IMAGES, ids=[3, 4, 5, 6], epoch=1)["global"], whole)


def test_without_ids_an_image_is_known_by_its_place():
    augment = made()
    first, second = augment(IMAGES)["global"], augment(IMAGES)["global"]
    assert not torch.equal(first, second)
    again = made()
    again.load_state_dict(augment.state_dict())
    assert torch.equal(again(IMAGES)["global"], augment(IMAGES, ids=[8, 9, 10, 11])["global"])


def test_tables_can_be_kept_and_made_again():
    augment = made()
    canvases = augment.canvases(IMAGES)
    tables = augment.decide(canvases, ids=range(4))
    views = augment.make(canvases, tables)["global"]
    assert torch.equal(views, augment(IMAGES, ids=range(4))["global"])


def test_it_is_copied_and_sent():
    augment = made()
    views = augment(IMAGES, ids=range(4))["global"]
    for other in (copy.deepcopy(augment), pickle.loads(pickle.dumps(augment))):
        assert torch.equal(other(IMAGES, ids=range(4))["global"], views)


@pytest.mark.parametrize(
    ("images", "ids", "said"),
    [
        (IMAGES.float(), None, r"4 x 3 x 50 x 60 of torch.float32; give \(B, 3, H, W\)"),
        (IMAGES[:, :1], None, "4 x 1 x 50 x 60"),
        ([], None, "no images"),
        (IMAGES, [1, 2], "2 ids for 4 images"),
    ],
)
def test_what_is_no_image_is_refused(images, ids, said):
    with pytest.raises(SslpipeError, match=said):
        made()(images, ids)


def test_groups_of_another_modality_are_refused():
    with pytest.raises(RecipeError, match=r"views.tokens is not of images"):
        Augment("gpt_bytes")
