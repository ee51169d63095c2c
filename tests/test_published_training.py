"""How the authors trained, stated once as data, and the recipes for ImageNet compared with it.

Values: the official code of each method. The peak rate is that at the authors' global batch.
"""

from dataclasses import dataclass

import pytest

from sslpipe.recipe import find_recipe, load_recipe
from sslpipe.train.run import lr_scale


@dataclass(frozen=True)
class Training:
    """Optimizer, global batch, peak rate and epochs of a paper; the rest where it says more."""

    optimizer: str
    batch: int
    peak: float
    epochs: int
    warmup: float  # epochs
    weight_decay: float
    final_weight_decay: float | None = None
    final_lr: float = 0.0
    final_lr_ratio: float | None = None
    warmup_lr: float = 0.0
    clip_norm: float | None = None
    clip: str = "global"
    schedule: str = "cosine"
    milestones: tuple[int, ...] = ()
    decay: str = "weights"  # all: biases and norms, too
    bias_lr: float | None = None  # at the authors' batch
    betas: tuple[float, float] | None = None
    layers: tuple[float, float] = (1.0, 1.0)  # layer_decay, patch_embed_lr


def self_distilled(batch, peak, epochs, warmup, **more):
    """AdamW whose weight decay rises from .04 to .4, as in DINO."""
    usual = {"final_weight_decay": 0.4, "final_lr": 1e-6}
    return Training("adamw", batch, peak, epochs, warmup, 0.04, **usual | more)


def moco(**schedule):
    return Training("sgd", 256, 0.03, 200, 0, 1e-4, decay="all", **schedule)


DINOV2 = self_distilled(
    2048, 4e-3 * 2**0.5, 200, 20, clip_norm=3.0, clip="per_module", layers=(0.9, 0.2)
)
PER_PARAMETER = {"clip_norm": 3.0, "clip": "per_parameter"}
PUBLISHED = {
    "simclr": Training("lars", 4096, 4.8, 100, 10, 1e-6),
    "moco_v1": moco(schedule="multistep", milestones=(120, 160)),
    "moco_v2": moco(schedule="cosine_per_epoch"),
    "moco_v3": Training("adamw", 4096, 2.4e-3, 300, 40, 0.1),
    "moco_v3_r50": Training("lars", 4096, 9.6, 100, 10, 1e-6),
    "byol": Training("lars", 4096, 3.2, 1000, 10, 1.5e-6),
    "simsiam": Training("sgd", 512, 0.1, 100, 0, 1e-4, decay="all", schedule="cosine_per_epoch"),
    "barlow_twins": Training(
        "lars", 2048, 1.6, 1000, 10, 1e-6, final_lr_ratio=1e-3, bias_lr=0.0384
    ),
    "vicreg": Training("lars", 2048, 1.6, 1000, 10, 1e-6, final_lr_ratio=1e-3),
    "swav": Training("lars", 256, 0.6, 200, 0, 1e-6, final_lr=6e-4, decay="all"),
    "deepcluster_v2": Training("lars", 256, 0.3, 800, 10, 1e-6, final_lr=3e-4, decay="all"),
    "dino": self_distilled(512, 1e-3, 100, 10, **PER_PARAMETER),
    "ibot": self_distilled(1024, 2e-3, 800, 10, **PER_PARAMETER),
    "dinov2": DINOV2,
    "dinov2_documented": DINOV2,
    # of the authors' 1024 samples a quarter, and so of where their warm-up starts
    "msn": self_distilled(256, 2.5e-4, 800, 15, warmup_lr=5e-5, clip_norm=3.0),
    "ijepa": self_distilled(2048, 1e-3, 300, 40, warmup_lr=2e-4),
    "mae": Training("adamw", 4096, 2.4e-3, 800, 40, 0.05, betas=(0.9, 0.95)),
    "simmim": Training("adamw", 2048, 4e-4, 800, 10, 0.05, warmup_lr=2e-6, clip_norm=5.0,
                       schedule="multistep", milestones=(700,)),
    "beit": Training("adamw", 2048, 1.5e-3, 800, 10, 0.05, final_lr=1e-5, clip_norm=3.0),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_recipes_train_as_published(name):
    recipe = load_recipe(find_recipe(name))
    train, settings = recipe.train, recipe.train.optimizer.settings
    published = PUBLISHED[name]
    scale = lr_scale(train.model_copy(update={"accumulate": 1}), published.batch)
    bias_lr = settings.get("bias_lr")
    ours = Training(
        train.optimizer.name, published.batch, pytest.approx(settings["lr"] * scale),
        train.epochs, train.warmup_epochs, settings["weight_decay"],
        **{key: getattr(train, key) for key in (
            "final_weight_decay", "final_lr", "final_lr_ratio", "warmup_lr", "clip_norm", "clip",
            "schedule", "milestones",
        )},
        decay=settings.get("decay", "weights"),
        bias_lr=bias_lr and pytest.approx(bias_lr * scale),
        betas=tuple(settings["betas"]) if "betas" in settings else None,
        layers=(settings.get("layer_decay", 1.0), settings.get("patch_embed_lr", 1.0)),
    )  # fmt: skip
    assert ours == published
