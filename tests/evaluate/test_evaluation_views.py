"""Every recipe's encoder can be judged: central crops of the size that it was trained on."""

import pytest

import sslpipe
from sslpipe.evaluate.features import central
from sslpipe.recipe import find_recipe, load_recipe, recipes
from sslpipe.train.run import encoded_view

IMAGES = sorted(name for name, path in recipes().items() if path.parent.name == "image")


@pytest.mark.parametrize("name", IMAGES)
def test_whole_views_of_any_group_are_judged(name, sample):
    recipe = load_recipe(find_recipe(name), overrides=["stream.batch_size=8"])
    view = central(recipe, batch_size=2).views["global"]
    with sslpipe.load(recipe, shards=sample, device="cpu", rank=0, world_size=1) as pipe:
        size = encoded_view(pipe.spec).size("H")
    cut = {"jigsaw", "relative_patch"} & recipe.targets.keys()  # patches in training, images here
    assert view.ops[0].settings["size"][0] == size or cut
    trained = next(iter(recipe.views.values()))
    norms = [op for op in trained.ops if op.name == "Normalize"]
    assert list(view.ops[1:]) == norms
