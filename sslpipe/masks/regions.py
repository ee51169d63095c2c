"""Blobs of any shape: the random regions of context encoders.

Letters: V views, B samples, H W N patches, I J numbers of noise along the sides.
"""

from dataclasses import dataclass

import numpy as np

from ..rng import Keys, Place
from .grids import Bools, Grid, Numbers, check_fraction, check_plane


@dataclass(frozen=True, kw_only=True)
class RandomRegion:
    """Hide where smooth noise is lowest (context encoder, arXiv:1604.07379; `train_random.lua`).

    Uniform noise, enlarged bicubically and cut at a random place. The official code hides what lies
    below `density`, redraws until that is 20 to 30 % of the pixels, and takes one mask for a whole
    batch. Here each mask is its sample's own and hides its lowest patches, an exact number of them.
    """

    density: float = 0.25
    cells: float = 7.68  # numbers of noise along the grid's longer side: officially 0.06 x 128 px

    def __post_init__(self) -> None:
        check_fraction("density", self.density)
        if self.cells <= 0:
            raise ValueError(f"cells = {self.cells} must be above 0")

    def hidden(self, grid: Grid) -> int:
        """Count the hidden patches, rounded down.

        Raises:
            ValueError: the noise is finer than the patches.
        """
        check_plane(grid)
        if self.cells > max(grid):
            raise ValueError(
                f"cells = {self.cells} is more than the {max(grid)} patches along a side of "
                f"{grid[0]} x {grid[1]}; set it or the patch_size lower, or use random"
            )
        return int(grid[0] * grid[1] * self.density)

    def draw(self, keys: Keys, place: Place, stream: str, grid: Grid) -> Bools:
        """Rank the patches by their noise."""
        noise_VBN = self.noise(keys, stream, grid)
        lowest = noise_VBN.argsort(-1, kind="stable")[..., : self.hidden(grid)]
        hidden_VBN = np.zeros(noise_VBN.shape, dtype=bool)
        np.put_along_axis(hidden_VBN, lowest, True, axis=-1)
        return hidden_VBN

    def noise(self, keys: Keys, stream: str, grid: Grid) -> Numbers:
        """Draw smooth noise and take its value at the middle of each patch: (V, B, N)."""
        side = int(self.cells) + 5  # the cut may begin anywhere in a cell; 4 numbers make a value
        coarse = keys.uniforms(stream, side**2)
        coarse_VBIJ = coarse.reshape(*coarse.shape[:2], side, side)
        start_VB2 = 1 + keys.uniforms(f"{stream}/start", 2)
        rows_VBHI, columns_VBWJ = (
            cubic(
                start_VB2[..., axis, None] + (np.arange(grid[axis]) + 0.5) * self.cells / max(grid),
                side,
            )
            for axis in (0, 1)
        )
        fine_VBHW = rows_VBHI @ coarse_VBIJ @ columns_VBWJ.swapaxes(-1, -2)
        return fine_VBHW.reshape(*coarse.shape[:2], -1)


def cubic(at: Numbers, count: int) -> Numbers:
    """Compute Catmull-Rom's weights (..., count), which interpolate `count` numbers at `at`."""
    d = np.abs(at[..., None] - np.arange(count))
    near = 1.5 * d**3 - 2.5 * d**2 + 1
    far = -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
    return np.where(d < 1, near, np.where(d < 2, far, 0.0))
