"""Boxes on the patch grid, many at a time."""

from typing import Any

import numpy as np
import numpy.typing as npt

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
