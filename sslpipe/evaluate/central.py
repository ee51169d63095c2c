"""The batches that evaluation reads: every sample once, in packed order, its central crop."""

from pathlib import Path

import torch

from ..batch import whole_group
from ..modalities.image.ops import CenterCrop
from ..pipeline import Pipeline, load
from ..recipe import Recipe
from ..recipe.names import Entry
from ..recipe.schema import StreamSection, ViewSection

SMALL = 64  # pixels: images of CIFAR's kind are taken whole
MARGIN = 256 / 224  # the field's test transform: resize to 256, crop 224


def central(recipe: Recipe, *, batch_size: int = 256) -> Recipe:
    """The recipe with one central view per sample and the training views' normalisation.

    Above 64 px the shorter side is resized to 256/224 of the view first, as is the custom.
    """
    group = recipe.views[whole_group(recipe.views)]
    size = group.ops[0].settings["size"]
    resize = max(size) if max(size) <= SMALL else round(max(size) * MARGIN)
    crop = Entry(CenterCrop.__name__, {"size": size, "resize": resize})
    normalize = [op for op in group.ops if op.name == "Normalize"]
    return recipe.model_copy(
        update={
            "stream": StreamSection(batch_size=batch_size, order="sequential", on_bad="raise"),
            "views": {"global": ViewSection(ops=(crop, *normalize))},
            "masks": {},
            "targets": {},
        }
    )


def central_batches(recipe: Recipe, *, shards: str | Path, device: torch.device | str) -> Pipeline:
    """Iterate once for every sample of `shards`; the last batch may be smaller."""
    return load(central(recipe), shards=shards, device=device, rank=0, world_size=1)
