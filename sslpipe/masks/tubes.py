"""Masks of clips that are alike, or run on, from one time to the next: VideoMAE.

Letters: V views, B samples, N patches of a clip, time outermost; S patches of one time.
"""

from dataclasses import dataclass

import numpy as np

from ..rng import Keys, Place
from .grids import Bools, Grid, check_fraction, check_volume, choose_patches

CELL = 4  # patches of a cell, 2 x 2


@dataclass(frozen=True, kw_only=True)
class Tube:
    """Hide the same random patches at all times (VideoMAE, arXiv:2203.12602).

    `TubeMaskingGenerator` of masking_generator.py: int(ratio * S) of the S patches of a time, so
    176 of 196 and 1,408 of 1,568 at 16 x 224 x 224 with patches of 2 x 16 x 16.
    """

    ratio: float = 0.9  # of the patches of a time

    def __post_init__(self) -> None:
        check_fraction("ratio", self.ratio)

    def hidden(self, grid: Grid) -> int:
        """Count the hidden patches of all times.

        Raises:
            ValueError: the views are no clips.
        """
        check_volume(grid)
        return grid[0] * int(grid[1] * grid[2] * self.ratio)

    def draw(self, keys: Keys, place: Place, stream: str, grid: Grid) -> Bools:
        """Hide the patches of the smallest random words, and repeat that over time."""
        plane = grid[1] * grid[2]
        hidden_VBS = choose_patches(keys.words(stream, plane), self.hidden(grid) // grid[0])
        return np.tile(hidden_VBS, grid[0])


@dataclass(frozen=True, kw_only=True)
class RunningCell:
    """Hide a share of each 2 x 2 cell, one place further on at each time (arXiv:2207.11660).

    VideoMAE v2 (arXiv:2303.16727) shows its decoder only what this mask leaves: hidden patches are
    dropped, and the loss counts those of the others that are hidden from the encoder.
    `RunningCellMaskingGenerator` of masking_generator.py: of the four places in row-major order a
    run of int(4 * ratio) is hidden, which begins at one of four places, drawn for each sample, and
    moves back by one at each time.
    """

    ratio: float = 0.5  # of a cell: .25, .5 or .75

    def __post_init__(self) -> None:
        if int(CELL * self.ratio) not in (1, 2, 3):
            raise ValueError(f"ratio = {self.ratio} must hide 1, 2 or 3 of the 4 patches of a cell")

    def hidden(self, grid: Grid) -> int:
        """Count the hidden patches of all times.

        Raises:
            ValueError: the views are no clips, or have an odd number of rows or columns.
        """
        check_volume(grid)
        if grid[1] % 2 or grid[2] % 2:
            raise ValueError(
                f"a grid of {grid[1]} x {grid[2]} patches has no whole 2 x 2 cells; choose another "
                "patch_size, or use tube"
            )
        return grid[0] * grid[1] * grid[2] // CELL * int(CELL * self.ratio)

    def draw(self, keys: Keys, place: Place, stream: str, grid: Grid) -> Bools:
        """Draw where each sample's run begins."""
        begin_VB = np.floor(keys.uniforms(stream, 1)[..., 0] * CELL).astype(np.int64)
        times, rows, columns = (np.arange(side) for side in grid)
        place_HW = 2 * (rows[:, None] % 2) + columns % 2
        # the official code moves on once before the first time
        turn_VBTHW = begin_VB[..., None, None, None] + 1 + times[:, None, None] + place_HW
        hidden_VBTHW: Bools = turn_VBTHW % CELL < int(CELL * self.ratio)
        return hidden_VBTHW.reshape(*begin_VB.shape, -1)
