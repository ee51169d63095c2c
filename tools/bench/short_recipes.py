"""A recipe made shorter, to fit a budget of minutes, and smaller, for CPUs."""

import json
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from types import MappingProxyType
from typing import Any

import sslpipe
from sslpipe.recipe import Recipe
from sslpipe.recipe.names import Entry
from sslpipe.train import initial_method
from sslpipe.train.loop import endless, optimizer_step
from sslpipe.train.record import Guard
from sslpipe.train.run import prepare_run

RESNET = Entry("cifar_resnet", {"width": 16, "blocks": [1, 1, 1, 1]})
VIT = MappingProxyType({"embed_dim": 96, "depth": 4, "num_heads": 3})
# teachers of runs of hundreds of steps: at 0.99 and more they would stay near where they began
FAST = MappingProxyType({"momentum": 0.97})
PROTOTYPES = MappingProxyType({"prototypes": 1024, "hidden": 256, "bottleneck": 64, **FAST})
SMALL: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "barlow_twins": {"projector": [512, 512, 512]},
        "vicreg": {"projector": [512, 512, 512]},
        "simsiam": {"projector": [512, 512], "predictor_hidden": 128},
        "mae": {"decoder_dim": 96, "decoder_depth": 2},
        **dict.fromkeys(("dino", "ibot", "dinov2"), PROTOTYPES),
        **dict.fromkeys(("msn", "moco_v3"), FAST),
        "data2vec2": {"top_k": 3},
    }
)


def planned(recipe: Recipe, path: Path, *, fitting: Callable[[Recipe], int]) -> Recipe:
    """The recipe with other epochs; `fitting` says how many, once, so that a run can go on."""
    if not path.exists():
        path.write_text(json.dumps({"epochs": fitting(recipe)}))
    return shortened(recipe, json.loads(path.read_text())["epochs"])


def fitting_epochs(recipe: Recipe, *, shards: Path, device: str, minutes: float) -> int:
    """As many as a budget holds, at least one."""
    seconds, steps = step_time(recipe, shards, device)
    return max(1, int(minutes * 60 / (seconds * steps)))


def small(recipe: Recipe) -> Recipe:
    """Make a recipe that suits CPUs, by a narrow backbone and small heads."""
    narrowed = trained_by(recipe, backbone=narrow(recipe.train.backbone))
    return narrowed.model_copy(update={"method": small_method(recipe.method)})


def narrow(backbone: Entry) -> Entry:
    """A narrow backbone of the same kind."""
    if not backbone.name.startswith("vit"):
        return RESNET
    return Entry(backbone.name, {**backbone.settings, **VIT}, backbone.where)


def small_method(method: Entry) -> Entry:
    """The method with heads and teachers for small backbones and few steps; most have them."""
    settings = {**method.settings, **SMALL.get(method.name, {})}
    return Entry(method.name, settings, method.where)


def trained_by(recipe: Recipe, **settings: Any) -> Recipe:
    """The recipe with other settings of its train section."""
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=settings)})


def shortened(recipe: Recipe, epochs: int) -> Recipe:
    """Another number of epochs, warm-up and milestones in proportion."""
    share = epochs / recipe.train.epochs
    milestones = sorted({max(1, round(m * share)) for m in recipe.train.milestones} - {epochs})
    return trained_by(
        recipe,
        epochs=epochs,
        warmup_epochs=recipe.train.warmup_epochs * min(share, 1.0),
        milestones=tuple(milestones),
        schedule=recipe.train.schedule if milestones or not recipe.train.milestones else "cosine",
    )


def step_time(recipe: Recipe, shards: Path, device: str, *, steps: int = 8) -> tuple[float, int]:
    """Seconds per batch, data included, after warming up; and batches per epoch."""
    with (
        sslpipe.load(recipe, shards=shards, device=device) as pipe,
        closing(endless(pipe)) as batches,
    ):
        run = prepare_run(pipe, initial_method(recipe, pipe.spec), recipe.train)
        guard = Guard(pipe.device)
        for step in range(3):
            optimizer_step(run, batches, min(step, run.plan.total - 1), guard)
        guard.check(1)
        start = time.perf_counter()
        for step in range(steps):
            optimizer_step(run, batches, min(step, run.plan.total - 1), guard)
        guard.check(1)  # waits for the device
        seconds = (time.perf_counter() - start) / steps / recipe.train.accumulate
        return seconds, len(pipe)
