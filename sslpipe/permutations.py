"""Permutations as functions: range(n) in the order of keyed random words (rng.py)."""

import numpy as np
import numpy.typing as npt

from .rng import U64, words

I64 = npt.NDArray[np.int64]


def permutation(n: int, *, seed: int, epoch: int, stream: str, item: int = 0) -> I64:
    """Permute range(n), for each `item` otherwise: by the order of n keyed 64-bit words."""
    epochs = np.array([epoch])
    (found,) = permutations(n, seed=seed, epochs=epochs, stream=stream, item=item)
    return np.asarray(found, dtype=np.int64)


def permutations(n: int, *, seed: int, epochs: I64, stream: str, item: npt.ArrayLike = 0) -> I64:
    """Make the `permutation` of each epoch and item, which are broadcast to (k,): (k, n)."""
    return in_order(permutation_keys(n, seed=seed, epochs=epochs, stream=stream, item=item))


def permutation_keys(
    n: int, *, seed: int, epochs: I64, stream: str, item: npt.ArrayLike = 0
) -> U64:
    """Draw what permutations are sorted by: (k, n) words of 64 bits."""
    raw = words(2 * n, seed=seed, epoch=epochs, stream=stream, ids=item)
    return raw[:, 0::2] << np.uint64(32) | raw[:, 1::2]


def in_order(keys: U64) -> I64:
    """Sort each row; of equal words, one in 1e19, the first goes first."""
    order: I64 = keys.argsort(-1)
    ordered = np.take_along_axis(keys, order, -1)
    if (ordered[:, 1:] == ordered[:, :-1]).any():
        order = keys.argsort(-1, kind="stable")
    return order


def permuted_places(n: int, places: I64, *, seed: int, epochs: I64, stream: str) -> I64:
    """Give `permutations(...)[:, places]`, (k, places).

    Of places near each other only these are sorted: one rank's of 64 cost half as much.
    """
    keys = permutation_keys(n, seed=seed, epochs=epochs, stream=stream)
    low, high = int(places.min()), int(places.max())
    ends = [max(low - 1, 0), min(high + 1, n - 1)]  # a word beyond, to see whether it is equal
    if ends == [0, n - 1]:
        return in_order(keys)[:, places]
    part = keys.argpartition(ends, -1)[:, ends[0] : ends[1] + 1]
    found = np.take_along_axis(keys, part, -1)
    order = found.argsort(-1)
    found = np.take_along_axis(found, order, -1)
    if (found[:, 1:] == found[:, :-1]).any():
        return in_order(keys)[:, places]
    taken: I64 = np.take_along_axis(part, order, -1)[:, places - ends[0]]
    return taken
