"""sslpipe: the data engine for self-supervised pretraining.

pipe = sslpipe.load("simclr", shards="shards/sample")
for batch in pipe:
x1, x2 = batch.views["global"]
"""

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
from .pipeline import Pipeline, load, recipes
from .recipe import Recipe, load_recipe

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
]
