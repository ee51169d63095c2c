"""Published rates and sizes of masked, latent and pretext methods, and their recipes.

Values: the official code of each method, or VISSL where a recipe says so.
"""

import inspect
from dataclasses import dataclass

import pytest

from sslpipe.methods import METHODS
from sslpipe.recipe import find_recipe, load_recipe


@dataclass(frozen=True)
class Published:
    """`lr` is that of the whole batch, which is `batch` images per step."""

    batch: int
    optimizer: str
    lr: float
    decay: float
    epochs: int
    warmup: float
    start: float = 0.0
    end: float = 0.0
    clip: float | None = None
    momenta: tuple[float, ...] = (0.9, 0.999)  # AdamW's betas, or the momentum of SGD
    end_decay: float | None = None
    milestones: tuple[int, ...] = ()  # a tenth from each on; none: half a cosine per step
    drop_path: float = 0.0
    backbone: str = "vit_base"
    pos_embed: str | None = None
    layer_scale: float | None = None


def vissl(start, warmup):
    steps = (30, 60, 90, 100)
    return Published(256, "sgd", 0.1, 1e-4, 105, warmup, start, momenta=(0.9,), milestones=steps,
                     backbone="resnet50")  # fmt: skip


PUBLISHED = {
    "mae": Published(4096, "adamw", 2.4e-3, 0.05, 800, 40, momenta=(0.9, 0.95),
                     pos_embed="sincos"),  # blr 1.5e-4 per 256; no drop path
    "simmim": Published(2048, "adamw", 4e-4, 0.05, 800, 10, start=2e-6, clip=5.0,
                        milestones=(700,), drop_path=0.1, layer_scale=0.1),  # 1e-4, 5e-7 per 512
    "beit": Published(2048, "adamw", 1.5e-3, 0.05, 800, 10, end=1e-5, clip=3.0, drop_path=0.1),
    "data2vec2": Published(256, "adamw", 1e-3, 0.05, 75, 10, clip=4.0, momenta=(0.9, 0.95),
                           pos_embed="sincos"),  # 375,300 and 50,040 steps of 5,004 per epoch
    "ijepa": Published(2048, "adamw", 1e-3, 0.04, 300, 40, start=2e-4, end=1e-6, end_decay=0.4,
                       backbone="vit_huge_patch14_224", pos_embed="sincos"),
    "rotation": vissl(0.0, 0),
    "rotation_cifar": Published(128, "sgd", 0.1, 5e-4, 200, 0, momenta=(0.9,),
                                backbone="resnet18"),
    "jigsaw": vissl(0.025, 5),
    "colorization": Published(256, "adamw", 3e-5 * 256 / 40, 1e-3, 28, 1, momenta=(0.9, 0.99),
                              backbone="resnet50"),
    "inpainting": Published(64, "adamw", 2e-3, 0.0, 100, 0, momenta=(0.5, 0.999),
                            backbone="resnet50"),
}  # fmt: skip
SIZES = {
    "mae": {
        "decoder_dim": 512, "decoder_depth": 8, "decoder_heads": 16, "norm_pix": True,
    },
    "data2vec2": {"top_k": 10, "momentum": [0.9998, 0.99999], "momentum_warmup": 0.2665,
                  "cls_weight": 2.56},  # 100,000 of 375,300 steps; 0.01 x 16 images x 16 masks
    "ijepa": {
        "predictor_dim": 384, "predictor_depth": 12, "predictor_heads": 16,
    },
    "jigsaw": {"tile_dim": 1024, "hidden": 4096},
    "relative_patch": {"patch_dim": 4096, "hidden": 4096},
    "colorization": {"decoder": [512, 256, 256], "neighbours": 10, "sigma": 5.0, "gamma": 0.5},
    "inpainting": {"decoder": [512, 256, 128, 64, 64], "overlap": 4, "overlap_weight": 10.0},
}  # fmt: skip


OTHER_DEFAULTS = {
    "mae": {"decoder_mask": None, "decoder_window": None},
    "data2vec2": {"mask_noise": 0.01, "decoder_dim": 768, "decoder_depth": 6, "decoder_groups": 16},
    "ijepa": {"predictor_heads": 12, "momentum": [0.996, 1.0], "beta": 1.0},
    "inpainting": {"fill": 0.0},  # the mean colour, once normalised
}


def described(name):
    """A recipe in the words of the table."""
    recipe = load_recipe(find_recipe(name))
    train, settings = recipe.train, recipe.train.optimizer.settings
    batch = recipe.stream.batch_size * train.accumulate
    momentum = (settings.get("momentum", 0.9),)
    betas = tuple(settings.get("betas", (0.9, 0.999)))
    ends = {"drop_path_rate": 0.0, "pos_embed": None, "layer_scale": None}
    drop_path, pos_embed, layer_scale = (
        train.backbone.settings.get(key, usual) for key, usual in ends.items()
    )
    assert (train.schedule == "multistep") == bool(train.milestones)
    assert train.schedule in ("cosine", "multistep")
    assert train.gamma == 0.1
    assert train.clip == "global"
    assert train.lr_rule == "linear"
    return Published(
        batch, train.optimizer.name, pytest.approx(settings["lr"] * batch / train.lr_batch),
        settings["weight_decay"], train.epochs, train.warmup_epochs, train.warmup_lr,
        train.final_lr, train.clip_norm, betas if train.optimizer.name == "adamw" else momentum,
        train.final_weight_decay, train.milestones, drop_path, train.backbone.name, pos_embed,
        layer_scale,
    )  # fmt: skip


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_rates_are_the_published_ones(name):
    assert described(name) == PUBLISHED[name]


@pytest.mark.parametrize("name", sorted(SIZES))
def test_sizes_of_heads_and_losses_are_the_published_ones(name):
    assert load_recipe(find_recipe(name)).method.settings == SIZES[name]


@pytest.mark.parametrize("name", sorted(SIZES))
def test_defaults_of_methods_are_the_published_sizes(name):
    found = {
        key: list(p.default) if isinstance(p.default, tuple) else p.default
        for key, p in inspect.signature(METHODS[name]).parameters.items()
        if p.kind == p.KEYWORD_ONLY
    }
    # predictor_heads are those of the encoder: 16 of ViT-H, 12 by default, of ViT-B
    expected = SIZES[name] | OTHER_DEFAULTS.get(name, {})
    assert found == expected


def test_tasks_are_as_published():
    def task(name):
        (target,) = load_recipe(find_recipe(name)).targets.values()
        return target.task.name, target.task.settings

    jigsaw = {"cell": 85, "tile": 64, "permutations": 2000, "rule": "mean"}
    assert task("jigsaw") == ("jigsaw", jigsaw)  # tiles are not normalised, as officially
    patches = {"patch": 96, "gap": 48, "jitter": 7, "downsample": 0.33}
    assert task("relative_patch") == ("relative_patch", patches)
    assert task("colorization") == ("colorization", {"stride": 4})
    for name in ("rotation", "rotation_cifar"):
        assert task(name) == ("rotation", {})
        (views,) = load_recipe(find_recipe(name)).views.values()
        assert (views.count, views.draws) == (4, "shared")  # one augmented image, four turns
