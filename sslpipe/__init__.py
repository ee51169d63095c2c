"""sslpipe: the data engine for self-supervised pretraining.

    pipe = sslpipe.load("simclr", shards="shards/sample")
    for batch in pipe:
        x1, x2 = batch.views["global"]

Names are imported when first used: `sslpipe --help` need not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .batch import Batch, BatchSpec, MaskSpec, TargetSpec, ViewSpec
    from .errors import (
        ContractError,
        ExtraError,
        RecipeError,
        SampleError,
        ShardError,
        SslpipeError,
        StateError,
    )
    from .pipeline import Pipeline, load
    from .recipe import Recipe, load_recipe, recipes
    from .watching import watch

__all__ = [
    "Batch",
    "BatchSpec",
    "ContractError",
    "ExtraError",
    "MaskSpec",
    "Pipeline",
    "Recipe",
    "RecipeError",
    "SampleError",
    "ShardError",
    "SslpipeError",
    "StateError",
    "TargetSpec",
    "ViewSpec",
    "load",
    "load_recipe",
    "recipes",
    "watch",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in ("errors", "batch", "recipe", "pipeline", "watching"):
            found = vars(import_module(f".{module}", __name__)).get(name)
            if found is not None:
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
