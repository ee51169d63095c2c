"""What methods refuse when they are built, each with the setting to change.

Every number among their settings is tried, so a new one without a check is found.
"""

from dataclasses import replace

import pytest
from torch import nn

from sslpipe import methods
from sslpipe.errors import ContractError, SslpipeError
from sslpipe.recipe.names import Entry, keyword_settings

from .every_method import SETTINGS, SOUND, TEXT, encoder_of, make_spec

OTHERS = {
    "autoencoder", "beit", "colorization", "data2vec2", "ijepa", "inpainting", "jigsaw", "mae",
    "relative_patch", "rotation", "simmim", "clip", "siglip", *SOUND, *TEXT,
}  # fmt: skip
COMPARE_VIEWS = sorted(SETTINGS.keys() - OTHERS)
SHARES = (  # in [0, 1]
    "momentum", "drop", "gamma", "warmup", "freeze_last_layer", "freeze_prototypes", "queue_start",
    "dropout",
)  # fmt: skip
OFF = (  # may be 0
    "weight", "noise", "overlap", "redundancy", "invariance", "variance", "covariance",
    "feature_grad", "beta", *SHARES,
)  # fmt: skip
ANY = ("fill", "decoder_mask", "bias")  # a colour, a name, any number


@pytest.fixture(params=sorted(SETTINGS))
def name(request):
    return request.param


@pytest.fixture
def spec():
    """All that any of the methods needs."""
    return make_spec(4)


def build(name, encoder, spec, **settings):
    return methods.build_method(Entry(name, SETTINGS[name] | settings, "r.yaml:7"), encoder, spec)


def numbers(name):
    """The settings that are numbers, or several of them, with their defaults."""
    known = keyword_settings(methods.METHODS[name])
    return {
        setting: default
        for setting, (_, default) in known.items()
        if not isinstance(default, bool | str | dict) and setting not in ANY
    }


def wrong(name, setting, default):
    """Values that cannot be."""
    if isinstance(default, tuple):
        above = 2 if setting.endswith(SHARES) else 0
        return [[-1] * len(default), [*default[1:], above]]
    if setting.endswith(SHARES) or (name, setting) == ("lejepa", "weight"):
        return [-1, 1.5]
    return [-1] if setting == "queue" or setting.endswith(OFF) else [-1, 0]


def test_a_number_that_cannot_be_is_named_with_its_value(name, spec):
    encoder = encoder_of(name, spec)
    build(name, encoder, spec)
    for setting, default in numbers(name).items():
        for value in wrong(name, setting, default):
            with pytest.raises(SslpipeError, match=rf"{setting} = .*(set|takes|multiple)"):
                build(name, encoder, spec, **{setting: value})


def test_no_layer_is_no_projector(name, vit, spec):
    if "projector" in numbers(name):
        with pytest.raises(SslpipeError, match=r"r\.yaml:7: .*projector = \(\); set"):
            build(name, vit, spec, projector=[])


@pytest.mark.parametrize("name", COMPARE_VIEWS)
def test_views_that_are_missing_are_named(name, vit, spec):
    needed = "anchor" if name == "msn" else "global"
    fewer = replace(spec.views[needed], count=spec.views[needed].count - 1)
    message = rf"{name} needs \d '{needed}' views; .* makes {fewer.count}\. .*{needed}\.count to"
    with pytest.raises(ContractError, match=message):
        build(name, vit, replace(spec, views={**spec.views, needed: fewer}))


@pytest.mark.parametrize("name", COMPARE_VIEWS)
def test_an_encoder_without_what_is_needed_of_it_is_named(name, spec):
    wanted = "tokens" if name in {"dinov2", "ibot", "msn"} else r"encoder\.dim"
    settings = {"freeze_patches": False} if name == "moco_v3" else {}
    with pytest.raises(ContractError, match=rf"{name} needs .*{wanted}.*Identity"):
        build(name, nn.Identity(), spec, **settings)


@pytest.mark.parametrize("name", ["deepcluster_v2", "dino", "dinov2", "ibot", "lejepa", "msn"])
def test_small_crops_that_are_no_whole_patches_are_named(name, vit, spec):
    small = "focal" if name == "msn" else "local"
    odd = replace(spec.views[small], shape=(3, 10, 8))
    with pytest.raises(ContractError, match=rf"{name}: views '{small}' of 10 x 8 px.*of 4 px; set"):
        build(name, vit, replace(spec, views={**spec.views, small: odd}))
