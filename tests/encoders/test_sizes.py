"""Sizes beyond use are refused by name before anything is built, of backbones and of methods."""

from typing import get_args

import pytest

from sslpipe.encoders.image import OF_VIEWS, check_encoder, cifar_resnet, vit
from sslpipe.encoders.sizes import LIMITS, whole_numbers
from sslpipe.encoders.text_tower import TextTower
from sslpipe.errors import RecipeError
from sslpipe.methods import METHODS, check_method
from sslpipe.methods.parts.two_towers import text_tower
from sslpipe.recipe import load_recipe, recipes
from sslpipe.recipe.names import Entry, keyword_settings

BUILDS_NOTHING = {"chunk", "iterations", "k", "neighbours", "overlap", "seed", "window"}
CHECKED_AGAINST_VIEWS = {"size", "strides"}  # of patches; strides must leave frames


def entry(name, **settings):
    return Entry(name, settings, "r.yaml:7")


@pytest.mark.parametrize(
    ("name", "setting", "value", "most"),
    [
        ("gpt", "depth", 2**40, "4,096"), ("gpt", "dim", 10**9, "65,536"),
        ("bert", "embedding", 10**9, "65,536"), ("albert", "depth", 4097, "4,096"),
        ("t5", "width", 65_537, "65,536"), ("wav2vec2", "conv_dim", 10**9, "65,536"),
        ("wav2vec2", "position_kernel", 10**9, "65,536"), ("vit_tiny", "depth", 2**40, "4,096"),
        ("vit_tiny", "embed_dim", 10**9, "65,536"), ("cifar_resnet", "width", 10**9, "65,536"),
        ("timesformer", "depth", 2**40, "4,096"),
    ],
)  # fmt: skip
def test_a_backbone_beyond_use_is_refused_by_name(name, setting, value, most):
    words = rf"^r\.yaml:7: {name}\.{setting} = {value}: is above {most}, .*; correct the value$"
    with pytest.raises(RecipeError, match=words):
        check_encoder(entry(name, **{setting: value}))


def test_of_several_numbers_one_is_enough():
    with pytest.raises(RecipeError, match=r"blocks = \[1, 1, 1, 5000\]: is above 4,096"):
        check_encoder(entry("cifar_resnet", blocks=[1, 1, 1, 5000]))
    with pytest.raises(RecipeError, match=r"simclr.projector = \[8, 70000\]: is above 65,536"):
        check_method(entry("simclr", projector=[8, 70_000]))


@pytest.mark.parametrize(
    ("name", "setting"),
    [("mae", "decoder_depth"), ("ijepa", "predictor_dim"), ("dino", "prototypes"),
     ("moco", "queue"), ("byol", "predictor_hidden"), ("wav2vec2", "entries")],
)  # fmt: skip
def test_a_method_beyond_use_is_refused_by_name(name, setting):
    with pytest.raises(RecipeError, match=rf"r\.yaml:7: {name}\.{setting} = 1{'0' * 9}: is above"):
        check_method(entry(name, **{setting: 10**9}))


def test_a_tower_of_text_beyond_use_is_refused_before_its_view_is_read():
    with pytest.raises(RecipeError, match=r"text\.depth = 1000000000: is above 4,096"):
        text_tower(entry("text", depth=10**9), None, causal=True)


def test_limits_are_inclusive_and_every_shipped_recipe_keeps_to_them():
    check_encoder(entry("gpt", depth=4096, dim=65_536, heads=64))
    for name in recipes():
        recipe = load_recipe(name)
        if recipe.method:
            check_method(recipe.method)
        if recipe.train:
            check_encoder(recipe.train.backbone)


def test_every_whole_number_of_ours_has_a_limit_or_builds_nothing():
    makers = [*METHODS.values(), *OF_VIEWS.values(), cifar_resnet, vit, TextTower]
    for made in makers:
        for name, (kind, default) in keyword_settings(made).items():
            if int in (kind, *get_args(kind)) or whole_numbers(default):
                last = name.rpartition("_")[2]
                assert last in LIMITS.keys() | BUILDS_NOTHING | CHECKED_AGAINST_VIEWS, (made, name)
