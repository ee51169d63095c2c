"""The batches that evaluation reads: every sample once, in packed order, nothing random."""

from pathlib import Path

import torch

from ..modalities.parts import find_modality
from ..pipeline import Pipeline, load
from ..recipe import Recipe
from ..recipe.schema import StreamSection


def central(recipe: Recipe, *, batch_size: int = 256) -> Recipe:
    """The recipe with the view that its modality evaluates on: an image's central crop."""
    return recipe.model_copy(
        update={
            "stream": StreamSection(batch_size=batch_size, order="sequential", on_bad="raise"),
            "views": find_modality(recipe.modality, recipe.path).evaluation_views(recipe),
            "masks": {},
            "targets": {},
        }
    )


def central_batches(recipe: Recipe, *, shards: str | Path, device: torch.device | str) -> Pipeline:
    """Iterate once for every sample of `shards`; the last batch may be smaller."""
    return load(central(recipe), shards=shards, device=device, rank=0, world_size=1)
