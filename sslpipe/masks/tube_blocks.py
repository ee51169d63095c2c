"""V-JEPA's blocks: boxes on rows and columns, through all times of a clip.

Letters: M masks per sample, B samples, K blocks of a mask, N patches of a clip, time outermost.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..rng import Keys, Place
from .grids import Bools, Grid, Numbers, boxes, check_volume

Floats = npt.NDArray[np.float64]

STREAM = "masks/tube_blocks"  # not the mask's name: context and targets must share their draws
TRIES = 20  # draws of all blocks of a mask until enough is left


@dataclass(frozen=True, kw_only=True)
class TubeBlocks:
    """Hide the union of blocks that go through all times (V-JEPA 2, arXiv:2506.09985).

    `_MaskGenerator` of multiseq_multiblock3d.py: mask m is the union of blocks[m] boxes of one size
    at random places. The context encoder sees what mask m leaves, and the predictor guesses what it
    hides, so that masks `context` and `targets` of a recipe, both of this sampler, are equal. The
    defaults are the published ones: 8 blocks of .15 of the plane, and 2 of .7.

    Here a sample's masks are its own. The official code draws a size for a whole batch, from a
    counter that workers share, and places from a global generator; it cuts what is shown, and what
    is guessed, to the least of a batch in raster order, which drops the ends of clips: here
    Batch.hidden counts. A mask that leaves fewer than `min_keep` patches is drawn anew, as there an
    empty context is; after 20 such draws its first block stands alone.
    """

    blocks: tuple[int, ...] = (8, 2)
    scale: tuple[float, ...] = (0.15, 0.7)  # of a block of each mask: share of rows x columns
    aspect: tuple[float, float] = (0.75, 1.5)  # height / width
    min_keep: int = 1  # patches that a mask leaves at least

    def __post_init__(self) -> None:
        if len(self.blocks) != len(self.scale) or not self.blocks:
            raise ValueError(
                f"blocks = {list(self.blocks)} and scale = {list(self.scale)} must have one number "
                "for each mask"
            )
        if min(self.blocks) < 1 or not all(0 < scale < 1 for scale in self.scale):
            raise ValueError(
                f"blocks = {list(self.blocks)} must be 1 or more, scale = {list(self.scale)} lie "
                "in (0, 1)"
            )
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(f"aspect = {list(self.aspect)} must rise and be positive")
        if self.min_keep < 1:
            raise ValueError(f"min_keep = {self.min_keep} must be 1 or more patches")

    @property
    def whole(self) -> "TubeBlocks":
        """All settings: context and targets are one draw."""
        return self

    def hidden(self, grid: Grid) -> None:
        """Return None: blocks overlap, so the number differs.

        Raises:
            ValueError: the views are no clips, or one block is empty or leaves too little.
        """
        check_volume(grid)
        times, plane = grid[0], grid[1] * grid[2]
        for scale in self.scale:
            height, width = sides(np.linspace(0, 1, 1001), scale, self.aspect, grid)
            if (height * width).min() < 1:
                raise ValueError(f"scale = {scale} makes empty blocks at {grid[1]} x {grid[2]}")
            left = times * int(plane - (height * width).max())
            if left < self.min_keep:
                raise ValueError(
                    f"one block of scale = {scale} leaves {left} patches of {grid[0]} x {grid[1]} "
                    f"x {grid[2]}; set scale lower, or min_keep = {self.min_keep}"
                )

    def draw(self, keys: Keys, place: Place, stream: str, grid: Grid) -> Bools:
        """Draw (M, B, N), a mask for each number of `blocks`."""
        masks = [self.planes(keys, number, grid) for number in range(len(self.blocks))]
        planes_MBS = np.stack(masks).reshape(len(masks), len(keys.uids), -1)
        return np.tile(planes_MBS, grid[0])

    def planes(self, keys: Keys, number: int, grid: Grid) -> Bools:
        """One mask at one time, (B, H, W), drawn anew where it leaves too little."""
        mine, words = replace(keys, views=np.array([number])), 1 + 2 * self.blocks[number]
        found_BHW = np.ones((len(keys.uids), *grid[1:]), dtype=bool)
        for attempt in range(TRIES):
            missing_B = grid[0] * (~found_BHW).sum((1, 2)) < self.min_keep
            if not missing_B.any():
                return found_BHW
            u_BP = mine.uniforms(STREAM, words, first=attempt * -(-words // 4))[0]
            placed_BKHW = self.place(u_BP, number, grid)
            found_BHW[missing_B] = placed_BKHW[missing_B].any(1)
        missing_B = grid[0] * (~found_BHW).sum((1, 2)) < self.min_keep
        found_BHW[missing_B] = placed_BKHW[missing_B, 0]
        return found_BHW

    def place(self, u_BP: Floats, number: int, grid: Grid) -> Bools:
        """The boxes of a mask, (B, K, H, W): one number makes their size, two more each place."""
        height_B, width_B = sides(u_BP[:, 0], self.scale[number], self.aspect, grid)
        u_BK2 = u_BP[:, 1:].reshape(len(u_BP), -1, 2)
        top_BK = np.floor(u_BK2[..., 0] * (grid[1] - height_B + 1)[:, None])
        left_BK = np.floor(u_BK2[..., 1] * (grid[2] - width_B + 1)[:, None])
        return boxes(top_BK, left_BK, height_B[:, None], width_B[:, None], grid[1:])


def sides(u: Floats, scale: float, aspect: tuple[float, float], grid: Grid) -> Numbers:
    """Height and width of blocks, (2, ...), from a uniform that drives their aspect."""
    area = int(grid[1] * grid[2] * scale)
    ratio = aspect[0] + u * (aspect[1] - aspect[0])
    height, width = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    return np.stack([np.minimum(height, grid[1]), np.minimum(width, grid[2])]).astype(np.int64)
