"""What samplers share: boxes and random choices on the patch grid, and checks."""

from typing import Any

import numpy as np
import numpy.typing as npt

from ..rng import U64

Bools = npt.NDArray[np.bool_]
Grid = tuple[int, ...]  # patches along each axis that is masked; of images: rows, columns
Numbers = npt.NDArray[Any]


def boxes(top: Numbers, left: Numbers, height: Numbers, width: Numbers, grid: Grid) -> Bools:
    """Mark the patches inside each box, (..., H, W); what sticks out of the grid is cut off."""
    row, column = np.arange(grid[0]), np.arange(grid[1])
    top, left, height, width = (side[..., None] for side in (top, left, height, width))
    in_rows = (row >= top) & (row < top + height)
    in_columns = (column >= left) & (column < left + width)
    return in_rows[..., :, None] & in_columns[..., None, :]


def check_plane(grid: Grid) -> None:
    """Raise a ValueError unless the grid has rows and columns: blocks need both."""
    if len(grid) != 2:
        raise ValueError(
            f"it places blocks on rows and columns, but these views have {len(grid)} axes to mask; "
            "use random"
        )


def check_volume(grid: Grid) -> None:
    """Raise a ValueError unless the grid has times, rows and columns."""
    if len(grid) != 3:
        raise ValueError(
            f"it masks clips, times x rows x columns, but these views have {len(grid)} axes to "
            "mask; use random, blockwise or multiblock"
        )


def choose_patches(words: U64, counts: npt.ArrayLike, *, preferred: npt.ArrayLike = True) -> Bools:
    """Choose exactly `counts` patches of every row: preferred ones first, else at random.

    words: (..., N) random u32, smallest first; the index breaks ties. counts: (...) in [0, N).
    """
    late = np.logical_not(preferred).astype(np.uint64) << np.uint64(63)
    index = np.arange(words.shape[-1], dtype=np.uint64)
    rank = late | words << np.uint64(31) | index
    nth = np.broadcast_to(np.asarray(counts, dtype=np.int64), rank.shape[:-1])[..., None]
    return rank < np.take_along_axis(np.sort(rank, axis=-1), nth, axis=-1)


def check_fraction(name: str, value: float) -> None:
    """Raise a ValueError unless 0 < value < 1."""
    if not 0 < value < 1:
        raise ValueError(f"{name} = {value} must lie in (0, 1)")
