"""Square tiles cut out of views, and orders of them: what jigsaws and relative patches are made of.

T tiles here.
"""

import math
from functools import lru_cache
from itertools import permutations
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ....batch import ViewSpec
from ....rng import words


def one_view(view: str, spec: ViewSpec, side: int) -> None:
    """Raise a ValueError unless the group is one view of 3 channels and `side` x `side` px."""
    if (spec.count, spec.shape) != (1, (3, side, side)):
        raise ValueError(
            f"views.{view} holds {spec.count} of {spec.shown}; "
            f"make it 1 view of {side} x {side} px with 3 channels"
        )


def cut_tiles(views_BCHW: Tensor, corners_TBC2: Tensor, size: int) -> Tensor:
    """Tiles of `size` px: (T, B, C, size, size).

    `corners_TBC2`: int64 (y, x) of the upper left pixel, of each channel for itself.
    """
    steps = torch.arange(size, device=views_BCHW.device)
    rows = (corners_TBC2[..., 0, None] + steps)[..., :, None]
    columns = (corners_TBC2[..., 1, None] + steps)[..., None, :]
    samples, channels = (torch.arange(n, device=views_BCHW.device) for n in views_BCHW.shape[:2])
    return views_BCHW[samples[:, None, None, None], channels[:, None, None], rows, columns]


def over_rms(tiles: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Divide by the root mean square over `dims`; what is flat stays near 0."""
    # 1e-3: far below the contrast of any picture, far above rounding
    return tiles / tiles.square().mean(dims, keepdim=True).sqrt().clamp(min=1e-3)


def standardise(tiles: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Mean 0 and standard deviation 1 over `dims`; what is flat becomes 0."""
    return over_rms(tiles - tiles.mean(dims, keepdim=True), dims)


Rule = Literal["mean", "min"]


@lru_cache(maxsize=4)
def permutation_set(items: int, count: int, rule: Rule, seed: int) -> npt.NDArray[np.int64]:
    """(count, items): chosen one by one, each far in Hamming distance from those before it.

    rule "mean": the greatest mean distance, as `select_permutations.py` of JigsawPuzzlePytorch and
    VISSL ("max_avg"): two may differ by one swap. "min": the greatest least distance, ties by the
    mean. Takes 1 to 2 ms per permutation of 9 items.

    Raises:
        ValueError: there are no `count` permutations of `items`.
    """
    if not 2 <= count <= math.factorial(items):
        raise ValueError(
            f"permutations = {count} must lie in [2, {math.factorial(items)}], "
            f"all orders of {items} tiles"
        )
    all_IN = np.array(list(permutations(range(items))), dtype=np.uint8).T.copy()
    start = words(1, seed=seed, epoch=0, stream="targets/permutations", ids=0)
    chosen = [int(start[0]) % all_IN.shape[1]]
    total_N = np.zeros(all_IN.shape[1], dtype=np.int32)
    least_N = np.full(all_IN.shape[1], items, dtype=np.uint8)
    for _ in range(count - 1):
        total_N[chosen[-1]] = -(2**30)  # not again
        distance_N = hamming(all_IN, chosen[-1])
        total_N += distance_N
        np.minimum(least_N, distance_N, out=least_N)
        # totals stay below 2**20, as items x count does
        score_N = total_N if rule == "mean" else total_N + least_N * np.int32(2**20)
        chosen.append(int(score_N.argmax()))
    found = all_IN[:, chosen].T.astype(np.int64)
    found.setflags(write=False)  # it is shared by all who ask
    return found


def hamming(all_IN: npt.NDArray[np.uint8], one: int) -> npt.NDArray[np.uint8]:
    """In how many places every permutation differs from number `one`."""
    distance_N = np.zeros(all_IN.shape[1], dtype=np.uint8)
    for items_N in all_IN:
        distance_N += items_N != items_N[one]
    return distance_N
