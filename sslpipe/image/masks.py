"""Masks over the patches of a view, keyed per sample. True = hidden from the encoder.

Letters: M masks per sample, B samples, N patches (row-major).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .. import lookup
from ..batch import MaskSpec, ViewSpec
from ..errors import RecipeError
from ..lookup import Entry
from ..rng import Keys, Place


class Sampler(Protocol):
    """Draws masks, from the keys of the samples or, where it couples them, from their place."""

    def hidden(self, grid: tuple[int, int]) -> int | None:
        """Patches that every mask hides; None: they differ."""
        ...

    def draw(
        self, keys: Keys, place: Place, stream: str, grid: tuple[int, int]
    ) -> npt.NDArray[np.bool_]:
        """(M, B, N) bool."""
        ...


@dataclass(frozen=True, kw_only=True)
class Random:
    """Hide a uniformly random subset (MAE, arXiv:2111.06377; `random_masking` of models_mae.py)."""

    ratio: float = 0.75  # of the patches

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise ValueError(f"ratio = {self.ratio} must lie in (0, 1)")

    def hidden(self, grid: tuple[int, int]) -> int:
        """N - int(N * (1 - ratio)), as the official code counts."""
        patches = grid[0] * grid[1]
        return patches - int(patches * (1 - self.ratio))

    def draw(
        self, keys: Keys, place: Place, stream: str, grid: tuple[int, int]
    ) -> npt.NDArray[np.bool_]:
        """Keep the patches of the smallest random words; the index breaks ties."""
        patches = grid[0] * grid[1]
        noise = keys.words(stream, patches) << np.uint64(32) | np.arange(patches, dtype=np.uint64)
        keep = patches - self.hidden(grid)
        limit = np.sort(noise, axis=-1)[..., keep - 1 : keep]
        return noise > limit


SAMPLERS: Mapping[str, type[Sampler]] = MappingProxyType({"random": Random})


@dataclass(frozen=True, slots=True)
class Masker:
    """A sampler on the grid of one view group."""

    name: str
    sampler: Sampler
    spec: MaskSpec

    def draw(
        self,
        *,
        seed: int,
        epochs: npt.NDArray[np.int64],
        uids: npt.NDArray[np.int64],
        place: Place,
    ) -> npt.NDArray[np.bool_]:
        """(M, B, N) bool for the samples of a batch."""
        keys = Keys(seed, epochs, uids, np.arange(self.spec.count, dtype=np.int64))
        return self.sampler.draw(keys, place, f"masks/{self.name}", self.spec.grid)


def masker(
    name: str, entry: Entry, *, view: str, spec: ViewSpec, count: int, patch_size: int
) -> Masker:
    """Build the masks called `name` for view group `view`.

    Raises:
        RecipeError: unknown sampler or setting, patches that do not fit the view, or a ratio that
            hides nothing or everything.
    """
    sampler: Sampler = lookup.call(lookup.choose(entry, SAMPLERS, "mask sampler"), entry)
    if spec.height % patch_size or spec.width % patch_size:
        raise RecipeError(
            f"{entry.where}: masks.{name}.patch_size = {patch_size} does not divide views.{view} "
            f"of {spec.height} x {spec.width} px; choose a divisor"
        )
    grid = (spec.height // patch_size, spec.width // patch_size)
    hidden = sampler.hidden(grid)
    if hidden is not None and not 0 < hidden < grid[0] * grid[1]:
        raise RecipeError(
            f"{entry.where}: masks.{name} hides {hidden} of {grid[0] * grid[1]} patches; "
            "change the ratio or the patch_size"
        )
    return Masker(name, sampler, MaskSpec(view, count, patch_size, grid, hidden))
