"""I-JEPA's blocks: targets to predict and the context to predict them from.

Letters: K target blocks, C contexts, B samples, H W N patches.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..rng import Keys, Place
from .grids import Bools, Grid, boxes, check_plane

Pair = tuple[float, float]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
STREAM = "masks/multiblock"  # not the mask's name: context and targets must share their draws
TRIES = 20  # places tried for a context before one target block less is kept out of it


@dataclass(frozen=True, kw_only=True)
class Multiblock:
    """Hide target blocks, or all but a context (I-JEPA, arXiv:2301.08243; `multiblock.py`).

    part `targets`: mask m hides target block m. `context`: hides what the context encoder does
    not see. A recipe has one mask of each, alike in all other settings.

    mode `reference`: block sizes are shared by the global batch, contexts cut to its smallest in
    raster order (which favours upper patches). `per_sample`: sizes of their own, nothing cut.

    As in the official code one random number drives scale and aspect of a block, and no block
    touches the last row or column. At 14 x 14 and 16 x 16 patches the published context_scale
    always makes the largest block there is: all but the last row and column.
    """

    part: Literal["context", "targets"]
    blocks: int = 4
    scale: Pair = (0.15, 0.2)  # of a target block: share of the grid
    aspect: Pair = (0.75, 1.5)  # of a target block: height / width
    context_scale: Pair = (0.85, 1.0)  # aspect 1
    min_keep: int = 10  # every block, and what is left of a context, has more patches
    mode: Literal["per_sample", "reference"] = "per_sample"

    def __post_init__(self) -> None:
        for name in ("scale", "context_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name} = [{low}, {high}] must rise within (0, 1]")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(f"aspect = {list(self.aspect)} must rise and be positive")
        if self.blocks < 1 or self.min_keep < 0:
            raise ValueError(
                f"blocks = {self.blocks} must be 1 or more, min_keep = {self.min_keep} 0 or more"
            )

    @property
    def whole(self) -> "Multiblock":
        """The same draw, whichever part of it."""
        return replace(self, part="context")

    def hidden(self, grid: Grid) -> None:
        """Return None: the number differs, at least from batch to batch.

        Raises:
            ValueError: blocks would have too few patches on this grid.
        """
        check_plane(grid)
        anything = np.linspace(0, 1, 1001)
        for name, scale, aspect in (
            ("scale", self.scale, self.aspect),
            ("context_scale", self.context_scale, (1.0, 1.0)),
        ):
            least = int(np.prod(block_size(anything, scale, aspect, grid), axis=0).min())
            if least <= self.min_keep:
                raise ValueError(
                    f"{name} = {list(scale)} makes blocks of {least} patches in a grid of "
                    f"{grid[0]} x {grid[1]}; they need more than min_keep = {self.min_keep}"
                )

    def draw(self, keys: Keys, place: Place, stream: str, grid: Grid) -> Bools:
        """Draw (blocks, B, N) targets, or (M, B, N) contexts, one for each of `keys.views`."""
        if self.mode == "per_sample":
            return self.masks(keys, keys, grid)
        masks = self.masks(place.all_slots(keys), place.one_for_all(keys), grid)
        return (cut(masks) if self.part == "context" else masks)[:, place.slots]

    def masks(self, keys: Keys, size_keys: Keys, grid: Grid) -> Bools:
        """Draw what is hidden, before contexts are cut to one size."""
        target_size, context_size = self.sizes(size_keys, grid)
        targets_KBHW = place_boxes(numbered(keys, self.blocks), "targets", target_size, grid)
        if self.part == "targets":
            return flat(targets_KBHW)
        return ~flat(self.contexts(keys, targets_KBHW, context_size, grid))

    def sizes(self, keys: Keys, grid: Grid) -> tuple[Ints, Ints]:
        """Draw height and width of targets and of contexts, (2, B) each; B = 1: of all samples."""
        u_B2 = numbered(keys, 1).uniforms(f"{STREAM}/sizes", 2)[0]
        return (
            block_size(u_B2[:, 0], self.scale, self.aspect, grid),
            block_size(u_B2[:, 1], self.context_scale, (1.0, 1.0), grid),
        )

    def contexts(self, keys: Keys, targets_KBHW: Bools, size: Ints, grid: Grid) -> Bools:
        """Draw (C, B, H, W) blocks without the targets, placed anew until enough is left.

        After every TRIES places one target less, the last first, is kept out. That is the only
        way to an overlap, and practically never needed at the published settings.
        """
        found = np.zeros((len(keys.views), *targets_KBHW.shape[1:]), dtype=bool)
        missing_CB = np.ones(found.shape[:2], dtype=bool)
        for attempt in range(TRIES * self.blocks + 1):  # the last: a whole block, always enough
            respected = self.blocks - attempt // TRIES
            block = place_boxes(keys, "contexts", size, grid, attempt=attempt)
            block &= ~targets_KBHW[:respected].any(0)
            found[missing_CB] = block[missing_CB]
            missing_CB &= block.sum((2, 3)) <= self.min_keep
            if not missing_CB.any():
                break
        return found


def block_size(u: Floats, scale: Pair, aspect: Pair, grid: Grid) -> Ints:
    """Compute height and width of blocks, (2, ...); one number drives scale and aspect."""
    area = np.floor(grid[0] * grid[1] * (scale[0] + u * (scale[1] - scale[0])))
    ratio = aspect[0] + u * (aspect[1] - aspect[0])
    height, width = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    # smaller than the grid, so that there is a choice of places
    return np.stack([np.minimum(height, grid[0] - 1), np.minimum(width, grid[1] - 1)]).astype(int)


def place_boxes(keys: Keys, name: str, size: Ints, grid: Grid, *, attempt: int = 0) -> Bools:
    """Place one box of size (2, B) for each view and sample: (V, B, H, W)."""
    height_B, width_B = size
    u_VB2 = keys.uniforms(f"{STREAM}/{name}", 2, first=attempt)
    # randint(0, H - h) of the official code excludes H - h: the last row and column stay free
    top_VB = np.floor(u_VB2[..., 0] * (grid[0] - height_B))
    left_VB = np.floor(u_VB2[..., 1] * (grid[1] - width_B))
    return boxes(top_VB, left_VB, height_B[None], width_B[None], grid)


def numbered(keys: Keys, count: int) -> Keys:
    """Number the views of the same samples from 0 to count - 1."""
    return replace(keys, views=np.arange(count, dtype=np.int64))


def flat(masks_MBHW: Bools) -> Bools:
    """Put the rows of the grid one after another: (M, B, N)."""
    return masks_MBHW.reshape(*masks_MBHW.shape[:2], -1)


def cut(hidden_CBN: Bools) -> Bools:
    """Show as many patches everywhere as where the fewest are shown, the first in raster order."""
    shown_CBN = ~hidden_CBN
    late_CBN: Bools = shown_CBN.cumsum(-1) > shown_CBN.sum(-1).min()
    return hidden_CBN | late_CBN
