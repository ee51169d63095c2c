"""Published rates and settings of the methods that compare views, and every recipe against them.

Values: the official code of each method (of NNCLR: the paper). Rates are those of the authors'
batch, which most recipes do not have: the recipe's rule must lead to them.
"""

import pytest

from sslpipe.methods import METHODS
from sslpipe.recipe import find_recipe, load_recipe
from sslpipe.recipe.names import bind, keyword_settings
from sslpipe.train import optimizers
from sslpipe.train.run import lr_scale

# recipe -> the authors' batch, optimizer, peak rate and decay there, epochs and those of warm-up
RATES = {
    "simclr": (4096, "lars", 4.8, 1e-6, 100, 10),
    "moco_v1": (256, "sgd", 0.03, 1e-4, 200, 0),
    "moco_v2": (256, "sgd", 0.03, 1e-4, 200, 0),
    "moco_v3": (4096, "adamw", 2.4e-3, 0.1, 300, 40),
    "moco_v3_r50": (4096, "lars", 9.6, 1e-6, 100, 10),
    "byol": (4096, "lars", 3.2, 1.5e-6, 1000, 10),
    "simsiam": (512, "sgd", 0.1, 1e-4, 100, 0),
    "barlow_twins": (2048, "lars", 1.6, 1e-6, 1000, 10),
    "vicreg": (2048, "lars", 1.6, 1e-6, 1000, 10),
    "swav": (256, "lars", 0.6, 1e-6, 200, 0),
    "deepcluster_v2": (4096, "lars", 4.8, 1e-6, 800, 10),
    "nnclr": (4096, "lars", 4.8, 1e-6, 1000, 10),
    "dino": (512, "adamw", 1e-3, 0.04, 100, 10),
    "msn": (1024, "adamw", 1e-3, 0.04, 800, 15),
    "ibot": (1024, "adamw", 2e-3, 0.04, 800, 10),
    "dinov2": (2048, "adamw", 0.004 * 2**0.5, 0.04, 200, 20),  # of ImageNet-1k: 125 000 steps
}
VIT = {"final_weight_decay": 0.4, "final_lr": 1e-6, "clip_norm": 3.0}
# what else the train section says; all that is not here must be as the section has it by itself
REST = {
    "moco_v1": {"schedule": "multistep", "milestones": (120, 160)},
    "moco_v2": {"schedule": "cosine_per_epoch"},
    "simsiam": {"schedule": "cosine_per_epoch"},
    "barlow_twins": {"final_lr_ratio": 0.001},
    "vicreg": {"final_lr_ratio": 0.001},
    "swav": {"final_lr": 6e-4},
    "deepcluster_v2": {"final_lr": 3e-4, "warmup_lr": 0.3 / 16},  # absolute, a 16th of theirs
    "dino": VIT | {"clip": "per_parameter"},
    "ibot": VIT | {"clip": "per_parameter"},
    "msn": VIT
    | {"warmup_lr": 2e-4 / 4, "schedule_stretch": 1.25, "lr_batch": 1024, "clip": "per_module"},
    "dinov2": VIT | {"lr_rule": "sqrt", "lr_batch": 1024, "clip": "per_module"},
}
OPTIMIZERS = {  # beyond rate and decay
    "sgd": {"momentum": 0.9, "nesterov": False, "decay": "weights"},
    "lars": {"momentum": 0.9, "trust_coefficient": 0.001, "bias_lr": None, "decay": "weights"},
    "adamw": {
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "layer_decay": 1.0,
        "patch_embed_lr": 1.0,
        "decay": "weights",
    },
}
OWN = {  # "all" with lars: LARC
    "barlow_twins": {"bias_lr": 0.0048},
    "dinov2": {"layer_decay": 0.9, "patch_embed_lr": 0.2},
}
DECAY_ALL = ("moco_v1", "moco_v2", "moco_v3", "simsiam", "swav", "deepcluster_v2")
OWN |= {key: {"decay": "all"} for key in DECAY_ALL}
SWAV = {"temperature": 0.1, "projector": (2048, 128), "prototypes": 3000}
WARM = {"student_temperature": 0.1, "teacher_temperature": (0.04, 0.07), "center_momentum": 0.9}
HEAD = {"hidden": 2048, "bottleneck": 256}
MOCO = {"queue": 65536, "momentum": 0.999, "bn_groups": 8}
METHOD = {
    "simclr": {"temperature": 0.1, "projector": (2048, 128)},
    "moco_v1": MOCO | {"temperature": 0.07, "projector": (128,)},
    "moco_v2": MOCO | {"temperature": 0.2, "projector": (2048, 128)},
    "moco_v3": {"temperature": 0.2, "projector": (4096, 4096, 256), "predictor_hidden": 4096,
                "predictor_norm": True, "freeze_patches": True, "momentum": 0.99},
    "moco_v3_r50": {"temperature": 1.0, "projector": (4096, 256), "predictor_hidden": 4096,
                    "predictor_norm": False, "freeze_patches": False, "momentum": 0.99},
    "byol": {"projector": (4096, 256), "predictor_hidden": 4096, "momentum": 0.996},
    "simsiam": {"projector": (2048, 2048, 2048), "predictor_hidden": 512},
    "barlow_twins": {"projector": (8192, 8192, 8192), "redundancy": 0.0051},
    "vicreg": {"projector": (8192, 8192, 8192), "invariance": 25, "variance": 25, "covariance": 1},
    "swav": SWAV | {"epsilon": 0.05, "iterations": 3, "freeze_prototypes": 1 / 200, "queue": 3840,
                    "queue_start": 15 / 200},
    "deepcluster_v2": SWAV | {"heads": 3, "iterations": 10},
    "nnclr": {"temperature": 0.1, "projector": (2048, 2048, 256), "predictor_hidden": 4096,
              "queue": 98304},
    "dino": WARM | HEAD | {"prototypes": 65536, "momentum": 0.996, "teacher_warmup": 30 / 100,
                           "norm_last_layer": False, "freeze_last_layer": 1 / 100},
    "msn": {"temperature": 0.1, "sharpening": 0.25, "me_max_weight": 1, "prototypes": 1024,
            "projector": (2048, 2048, 256), "momentum": 0.996},
    "ibot": WARM | HEAD | {"prototypes": 8192, "patch_temperature": (0.04, 0.07), "cls_weight": 1,
                           "patch_weight": 1, "momentum": 0.996, "teacher_warmup": 30 / 800,
                           "norm_last_layer": False, "freeze_last_layer": 1 / 800},
    "dinov2": WARM | HEAD | {"prototypes": 65536, "heads": "shared", "centering": "centering",
                             "cls_weight": 1, "patch_weight": 1, "koleo_weight": 0.1,
                             "momentum": 0.992, "teacher_warmup": 30 / 100,
                             "norm_last_layer": False, "freeze_last_layer": 1 / 100},
}  # fmt: skip
# where a method's defaults are not those of the recipe of its name
OTHERWISE = {
    "swav": {"freeze_prototypes", "queue", "queue_start"},  # 800 epochs at 4096, without a queue
    "dino": {"norm_last_layer"},
    "ibot": {"norm_last_layer"},
}


@pytest.fixture(params=sorted(RATES))
def name(request):
    return request.param


@pytest.fixture
def train(name):
    return load_recipe(find_recipe(name)).train


def test_rates_at_the_authors_batch_are_theirs(name, train):
    batch, optimizer, peak, decay, epochs, warmup = RATES[name]
    settings = bind(getattr(optimizers, optimizer), train.optimizer)
    assert train.optimizer.name == optimizer
    assert settings["lr"] * lr_scale(train, batch) == pytest.approx(peak)
    assert (settings["weight_decay"], train.epochs, train.warmup_epochs) == (decay, epochs, warmup)
    del settings["lr"], settings["weight_decay"]
    assert settings == OPTIMIZERS[optimizer] | OWN.get(name, {})


def test_the_rest_of_the_train_section_is_as_published(name, train):
    said = {"backbone", "optimizer", "epochs", "warmup_epochs", "precision"}
    fields = {k: f.default for k, f in type(train).model_fields.items() if k not in said}
    assert {k: getattr(train, k) for k in fields} == fields | REST.get(name, {})


def test_settings_of_the_method_are_as_published(name):
    entry = load_recipe(find_recipe(name)).method
    assert bind(METHODS[entry.name], entry) == METHOD[name]


@pytest.mark.parametrize("name", sorted(METHOD.keys() - {"moco_v1", "moco_v3_r50"}))
def test_defaults_are_published_values_too(name):
    method = METHODS[load_recipe(find_recipe(name)).method.name]
    defaults = {setting: default for setting, (_, default) in keyword_settings(method).items()}
    differ = {setting for setting in defaults if defaults[setting] != METHOD[name][setting]}
    assert differ == OTHERWISE.get(name, set())


# recipe -> rows of a step, steps, of which warm-up, peak rate, its end, decay
TEXT = {
    "gpt2": (480, 600_000, 2_000, 6e-4, 6e-5, 0.1),
    "t5_base": (128, 2**19, 0, 0.01, 0.01, 0.0),
    "electra_small": (128, 1_000_000, 10_000, 5e-4, 0.0, 0.01),
    "electra_base": (256, 766_000, 10_000, 2e-4, 0.0, 0.01),
}


@pytest.mark.parametrize("name", TEXT)
def test_text_recipes_take_the_published_steps(name):
    recipe = load_recipe(find_recipe(name))
    train, batch = recipe.train, recipe.stream.batch_size
    rows = batch * train.accumulate
    steps = recipe.stream.epoch_samples / rows
    settings = bind(getattr(optimizers, train.optimizer.name), train.optimizer)
    found = (rows, train.epochs * steps, train.warmup_epochs * steps)
    found += (settings["lr"] * lr_scale(train, batch), train.final_lr)
    assert (*found, settings.get("weight_decay", 0.0)) == pytest.approx(TEXT[name])
