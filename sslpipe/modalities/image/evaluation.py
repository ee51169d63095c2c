"""The view that evaluation reads: the central crop, as the field's test transforms have it."""

from ...batch import whole_group
from ...recipe import Entry, Recipe
from ...recipe.schema import ViewSection
from .ops import CenterCrop

SMALL = 64  # pixels: images of CIFAR's kind are taken whole
MARGIN = 256 / 224  # the field's test transform: resize to 256, crop 224


def evaluation_views(recipe: Recipe) -> dict[str, ViewSection]:
    """One central view per sample with the training views' normalisation.

    Above 64 px the shorter side is resized to 256/224 of the view first, as is the custom.
    """
    group = recipe.views[whole_group(recipe.views)]
    size = group.ops[0].settings["size"]
    resize = max(size) if max(size) <= SMALL else round(max(size) * MARGIN)
    crop = Entry(CenterCrop.__name__, {"size": size, "resize": resize})
    normalize = [op for op in group.ops if op.name == "Normalize"]
    return {"global": ViewSection(ops=(crop, *normalize))}
