"""Blocks that stay visible while the rest is hidden: data2vec 2.0."""

from dataclasses import dataclass

import numpy as np

from ..rng import Keys, Place
from .grids import Bools, Grid, boxes, check_fraction, check_plane, choose_patches


@dataclass(frozen=True, kw_only=True)
class InverseBlock:
    """Keep square blocks and hide the rest (data2vec 2.0, arXiv:2212.07525, section 3.2).

    `compute_block_mask_2d` of fairseq/examples/data2vec, with inverse_mask and without
    expand_adjcent: blocks around random patches, which may overlap and are cut at the border;
    then single patches are dropped or added at random, so that the count is exact.
    """

    ratio: float = 0.8  # hidden
    adjust: float = 0.07  # added to the kept share when blocks are counted: they overlap
    length: int = 3  # patches on a block's side

    def __post_init__(self) -> None:
        check_fraction("ratio", self.ratio)
        if self.length < 2:
            raise ValueError(f"length = {self.length} must be 2 or more patches; else use random")

    def kept(self, grid: Grid) -> int:
        """Count the patches that stay visible."""
        return int(grid[0] * grid[1] * (1 - self.ratio))

    def blocks(self, grid: Grid) -> int:
        """Count the blocks that are placed."""
        return int(grid[0] * grid[1] * ((1 - self.ratio + self.adjust) / self.length**2))

    def hidden(self, grid: Grid) -> int:
        """Count what is not kept.

        Raises:
            ValueError: no block fits.
        """
        check_plane(grid)
        if self.length > min(grid) or self.blocks(grid) < 1:
            raise ValueError(
                f"no block of {self.length} x {self.length} patches fits into the kept share of a "
                f"{grid[0]} x {grid[1]} grid; set length or ratio lower"
            )
        return grid[0] * grid[1] - self.kept(grid)

    def draw(self, keys: Keys, place: Place, stream: str, grid: Grid) -> Bools:
        """Place the blocks, drop or add single patches, and hide what is left."""
        patches = grid[0] * grid[1]
        centre_VBK = np.floor(keys.uniforms(f"{stream}/centres", self.blocks(grid)) * patches)
        top, left = (axis - self.length // 2 for axis in divmod(centre_VBK, grid[1]))
        length = np.full_like(top, self.length)
        blocks_VBN = boxes(top, left, length, length, grid).any(2).reshape(*top.shape[:2], -1)
        words_VBN = keys.words(stream, patches)
        return ~choose_patches(words_VBN, self.kept(grid), preferred=blocks_VBN)
