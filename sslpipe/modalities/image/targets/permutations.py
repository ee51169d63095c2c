"""Sets of permutations that are far from each other, for jigsaws. N items, made when first used."""

import math
from functools import lru_cache
from itertools import permutations
from typing import Literal

import numpy as np
import numpy.typing as npt

from ....rng import words

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
