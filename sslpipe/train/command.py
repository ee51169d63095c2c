"""`sslpipe train`: a recipe and shards become a run in a folder."""

from pathlib import Path

import torch

from ..errors import RecipeError
from ..pipeline import load
from ..recipe import Recipe
from ..stream.open import Shards
from .loop import TrainResult, train
from .report import Bar
from .run import initial_method
from .world import device_of, start_world


def run(
    recipe: Recipe,
    *,
    shards: Shards,
    out: Path,
    resume: bool,
    max_steps: int | None,
    device: str | None,
) -> TrainResult:
    """Train in this process, as one rank of torchrun's if it started us.

    Raises:
        RecipeError: the recipe has no method or train section, or one that does not suit.
        StateError: `out` holds another run.
    """
    if recipe.train is None:
        raise RecipeError(f"{recipe.path}: no train section; add one (see pipelines/README.md)")
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with (
        start_world(kind) as world,
        load(
            recipe,
            shards=shards,
            device=device_of(world, kind),
            quarantine=out / "quarantine.jsonl",
        ) as pipeline,
    ):
        method = initial_method(recipe, pipeline.spec)
        return train(
            pipeline,
            method,
            recipe.train,
            out=out,
            resume=resume,
            progress=Bar(),
            max_steps=max_steps,
        )
