"""A sampler of masks, tried on some samples before any data is read."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from ..batch import MaskSpec
from ..errors import RecipeError
from ..recipe.names import Entry
from ..rng import Keys, Place

Draw = Callable[[Keys, Place, str, tuple[int, ...]], Any]
TRIED = 64  # samples that a sampler is tried on


class TriedMask(Protocol):
    """What is asked of a mask's settings for messages: its sampler, and where its keys stand."""

    @property
    def sampler(self) -> Entry: ...
    def where(self, key: str) -> str: ...


def try_masks(draw: Draw, spec: MaskSpec, *, name: str, mask: TriedMask) -> None:
    """Compare the masks `name` that a sampler draws with what it and the recipe say.

    draw: `Sampler.draw`. mask: as the recipe has it, for messages.

    Raises:
        RecipeError: they are of another kind or number, hide another share, or are random without
            a key.
    """
    entry, uids = mask.sampler, np.arange(TRIED)
    what = f"{entry.where}: {entry.name}"
    keys = Keys(0, uids % 2, uids, np.arange(spec.count))
    place, stream = Place(0, uids, TRIED), f"masks/{name}"
    drawn, again = (draw(keys, place, stream, spec.grid) for _ in range(2))
    masks = isinstance(drawn, np.ndarray) and drawn.ndim == 3
    if masks and len(drawn) != spec.count:
        raise RecipeError(
            f"{mask.where('count')}: masks.{name}.count = {spec.count}, but {entry.name} makes "
            f"{len(drawn)} masks per sample; set it to {len(drawn)}"
        )
    if not masks or drawn.shape[1:] != (TRIED, spec.patches) or drawn.dtype != np.bool_:
        array = isinstance(drawn, np.ndarray)
        kind = f"{drawn.dtype} of {drawn.shape}" if array else f"a {type(drawn).__name__}"
        raise RecipeError(
            f"{what} draws {kind} for {TRIED} samples; return an array of bool, (M, B, N) = "
            f"{(spec.count, TRIED, spec.patches)}, True = hidden"
        )
    if not np.array_equal(drawn, again):
        raise RecipeError(
            f"{what} draws other masks when it is called again; take all that is random from "
            "`keys`, so that a run can be resumed"
        )
    counts = np.unique(drawn.sum(-1))
    if spec.hidden is not None and counts.tolist() != [spec.hidden]:
        raise RecipeError(
            f"{what}: hidden() says {spec.hidden} of {spec.patches} patches, but draw() hides "
            f"{counts[0]} to {counts[-1]}; correct one of them, or return None from hidden()"
        )
