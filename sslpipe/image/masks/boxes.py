"""Boxes on the patch grid, many at a time, and the keys of a whole global batch."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ...rng import Keys, Place
from .subsets import Bools, Grid

Numbers = npt.NDArray[Any]


def boxes(top: Numbers, left: Numbers, height: Numbers, width: Numbers, grid: Grid) -> Bools:
    """Patches inside each box, (..., H, W); what sticks out of the grid is cut off."""
    row, column = np.arange(grid[0]), np.arange(grid[1])
    top, left, height, width = (side[..., None] for side in (top, left, height, width))
    in_rows = (row >= top) & (row < top + height)
    in_columns = (column >= left) & (column < left + width)
    return in_rows[..., :, None] & in_columns[..., None, :]


def whole_batch(keys: Keys, place: Place) -> Keys:
    """Keys of all slots of the global batch, by step and slot: for draws that couple samples.

    Every rank makes the same ones, however the batch is split; it keeps those of `place.slots`.
    """
    slots = np.arange(place.size, dtype=np.int64)
    return replace(keys, epochs=np.full(place.size, place.step, dtype=np.int64), uids=slots)
