"""What the methods that compare views refuse when they are built, each with the setting to change.

Every number among their settings is tried, so a new one without a check is found.
"""

from dataclasses import replace

import pytest
from torch import nn

from sslpipe import methods
from sslpipe.batch import MaskSpec
from sslpipe.errors import ContractError, SslpipeError
from sslpipe.lookup import Entry, keyword_settings

PREDICTOR = {"projector": [12, 5], "predictor_hidden": 9}
PROTOTYPES = {"projector": [12, 5], "prototypes": 6}
HEAD = {"prototypes": 12, "hidden": 16, "bottleneck": 8}
SETTINGS = {
    "barlow_twins": {"projector": [12, 5]},
    "byol": PREDICTOR,
    "deepcluster_v2": PROTOTYPES,
    "dino": HEAD,
    "dinov2": HEAD,
    "ibot": HEAD,
    "lejepa": {"projector": [12, 5], "slices": 8},
    "moco": {"projector": [12, 5], "queue": 8, "bn_groups": 2},
    "moco_v3": PREDICTOR,
    "msn": PROTOTYPES,
    "nnclr": PREDICTOR | {"queue": 8},
    "simclr": {"projector": [12, 5]},
    "simsiam": PREDICTOR,
    "swav": PROTOTYPES | {"queue": 8},
    "vicreg": {"projector": [12, 5]},
}
SHARES = ("momentum", "warmup", "freeze_last_layer", "freeze_prototypes", "queue_start")
OFF = ("weight", "redundancy", "invariance", "variance", "covariance", *SHARES)  # may be 0


@pytest.fixture(params=sorted(SETTINGS))
def name(request):
    return request.param


@pytest.fixture
def spec(make_batch, rand, masked_crops):
    """All that any of the methods needs."""
    sizes = {"global": 2, "local": 2, "target": 1, "anchor": 1, "focal": 1}
    batch, _ = masked_crops
    views = {group: rand(count, 4, 3, 16, 16).float() for group, count in sizes.items()}
    spec = make_batch(views, batch.masks)[1]
    return replace(spec, masks={**spec.masks, "drop": MaskSpec("anchor", 1, 4, (4, 4), 3)})


def build(name, encoder, spec, **settings):
    return methods.build(Entry(name, SETTINGS[name] | settings, "r.yaml:7"), encoder, spec)


def numbers(name):
    """The settings that are numbers, or several of them, with their defaults."""
    known = keyword_settings(methods.METHODS[name])
    return {
        setting: default
        for setting, (_, default) in known.items()
        if not isinstance(default, bool | str)
    }


def test_a_number_that_cannot_be_is_named_with_its_value(name, vit, spec):
    build(name, vit, spec)
    for setting, default in numbers(name).items():
        wrong = [-1]
        if isinstance(default, tuple):
            wrong = [[-1] * len(default), [*default[1:], 0]]
        elif setting.endswith(SHARES) or (name, setting) == ("lejepa", "weight"):
            wrong.append(1.5)
        elif setting != "queue" and not setting.endswith(OFF):
            wrong.append(0)
        for value in wrong:
            with pytest.raises(SslpipeError, match=rf"{setting} = .*(set|takes|multiple)"):
                build(name, vit, spec, **{setting: value})


def test_no_layer_is_no_projector(name, vit, spec):
    if "projector" in numbers(name):
        with pytest.raises(SslpipeError, match=r"r\.yaml:7: .*projector = \(\); set"):
            build(name, vit, spec, projector=[])


def test_views_that_are_missing_are_named(name, vit, spec):
    needed = "anchor" if name == "msn" else "global"
    fewer = replace(spec.views[needed], count=spec.views[needed].count - 1)
    message = rf"{name} needs \d '{needed}' views; .* makes {fewer.count}\. .*{needed}\.count to"
    with pytest.raises(ContractError, match=message):
        build(name, vit, replace(spec, views={**spec.views, needed: fewer}))


def test_an_encoder_without_what_is_needed_of_it_is_named(name, spec):
    wanted = "tokens" if name in {"dinov2", "ibot", "msn"} else r"encoder\.dim"
    settings = {"freeze_patches": False} if name == "moco_v3" else {}
    with pytest.raises(ContractError, match=rf"{name} needs .*{wanted}.*Identity"):
        build(name, nn.Identity(), spec, **settings)


@pytest.mark.parametrize("name", ["deepcluster_v2", "dino", "dinov2", "ibot", "lejepa", "msn"])
def test_small_crops_that_are_no_whole_patches_are_named(name, vit, spec):
    small = "focal" if name == "msn" else "local"
    odd = replace(spec.views[small], height=10, width=8)
    with pytest.raises(ContractError, match=rf"{name}: views '{small}' of 10 x 8 px.*of 4 px; set"):
        build(name, vit, replace(spec, views={**spec.views, small: odd}))
