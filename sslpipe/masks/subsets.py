"""Random subsets of patches (MAE, MSN), of units of patches (SimMIM), and the middle block."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..rng import Keys, Place
from .grids import Bools, Grid, check_fraction, check_plane, choose_patches


@dataclass(frozen=True, kw_only=True)
class RandomPatches:
    """Hide a uniformly random subset (MAE, arXiv:2111.06377; `random_masking` of models_mae.py).

    mode `reference` hides the same patches in all samples and views of a batch, as the code of MSN
    (arXiv:2204.07141; `forward_features` of deit.py) does.
    """

    ratio: float = 0.75  # of the patches
    mode: Literal["per_sample", "reference"] = "per_sample"

    def __post_init__(self) -> None:
        check_fraction("ratio", self.ratio)

    def hidden(self, grid: Grid) -> int:
        """Count N - int(N * (1 - ratio)) patches, as the official code does."""
        patches = math.prod(grid)
        return patches - int(patches * (1 - self.ratio))

    def draw(self, keys: Keys, place: Place, stream: str, grid: Grid) -> Bools:
        """Keep the patches of the smallest random words."""
        patches = math.prod(grid)
        drawn_by = keys if self.mode == "per_sample" else place.one_for_all(keys)
        kept = choose_patches(drawn_by.words(stream, patches), patches - self.hidden(grid))
        return np.broadcast_to(~kept, (len(keys.views), len(keys.uids), patches)).copy()


@dataclass(frozen=True, kw_only=True)
class SimMIMUnits:
    """Hide random square units (arXiv:2111.09886; `MaskGenerator` of data_simmim.py).

    The paper's unit is 32 px: 2 patches of ViT-B/16, 8 patches of Swin's 4 px.
    """

    ratio: float = 0.6  # of the units
    unit: int = 2  # patches on a side

    def __post_init__(self) -> None:
        check_fraction("ratio", self.ratio)
        if self.unit < 1:
            raise ValueError(f"unit = {self.unit} must be 1 or more patches")

    def units(self, grid: Grid) -> Grid:
        """Count the rows and columns of units.

        Raises:
            ValueError: they do not fill the grid.
        """
        check_plane(grid)
        if grid[0] % self.unit or grid[1] % self.unit:
            raise ValueError(
                f"unit = {self.unit} does not divide the grid of {grid[0]} x {grid[1]} patches; "
                "choose a divisor"
            )
        return grid[0] // self.unit, grid[1] // self.unit

    def count(self, grid: Grid) -> int:
        """Count the hidden units, rounded up as the official code does."""
        rows, columns = self.units(grid)
        return int(np.ceil(rows * columns * self.ratio))

    def hidden(self, grid: Grid) -> int:
        """Count the patches of the hidden units."""
        return self.count(grid) * self.unit**2

    def draw(self, keys: Keys, place: Place, stream: str, grid: Grid) -> Bools:
        """Choose units and spread each over its patches."""
        rows, columns = self.units(grid)
        chosen = choose_patches(keys.words(stream, rows * columns), self.count(grid))
        units = chosen.reshape(*chosen.shape[:2], rows, columns)
        return units.repeat(self.unit, 2).repeat(self.unit, 3).reshape(*chosen.shape[:2], -1)


@dataclass(frozen=True, kw_only=True)
class Centre:
    """Hide the middle block (context encoder, arXiv:1604.07379: 64 of 128 px)."""

    fraction: float = 0.5  # of each side

    def __post_init__(self) -> None:
        check_fraction("fraction", self.fraction)

    def margin(self, side: int) -> int:
        """Count the patches that are left at each end of a side.

        Raises:
            ValueError: the block would not stand in the middle of the grid.
        """
        margin = side * (1 - self.fraction) / 2
        if abs(margin - round(margin)) > 1e-6:
            raise ValueError(
                f"fraction = {self.fraction} of {side} patches leaves {margin:g} at each end; "
                "choose one that leaves whole patches"
            )
        return round(margin)

    def hidden(self, grid: Grid) -> int:
        """Count the patches of the block."""
        check_plane(grid)
        return int(np.prod([side - 2 * self.margin(side) for side in grid]))

    def draw(self, keys: Keys, place: Place, stream: str, grid: Grid) -> Bools:
        """Repeat the same block for every view and sample: nothing is random."""
        top, left = (self.margin(side) for side in grid)
        block = np.zeros(grid, dtype=bool)
        block[top : grid[0] - top, left : grid[1] - left] = True
        return np.tile(block.ravel(), (len(keys.views), len(keys.uids), 1))
