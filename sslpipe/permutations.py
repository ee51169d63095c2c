"""Permutations as functions: range(n) in the order of keyed random words (rng.py)."""

import numpy as np
import numpy.typing as npt

from .rng import U64, words, words_of_blocks

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


def order_of_places(places: I64, *, seed: int, epochs: I64, stream: str) -> I64:
    """Order some places (k, m) of ranges that are permuted, as they follow each other there.

    Only their own keys are drawn, so of a long range it costs as much as of a short one.
    """
    keys = permutation_keys_at(places, seed=seed, epochs=epochs, stream=stream)
    order: I64 = keys.argsort(-1)
    ordered = np.take_along_axis(keys, order, -1)
    if (ordered[:, 1:] == ordered[:, :-1]).any():  # see `in_order`
        order = np.lexsort((places, keys), axis=-1)
    return order


def permutation_keys_at(places: I64, *, seed: int, epochs: I64, stream: str) -> U64:
    """Draw `permutation_keys` of some places (k, m) of each epoch (k,) alone: (k, m)."""
    blocks, second = places >> 1, places & 1 > 0  # a block of four words is two keys
    drawn = words_of_blocks(blocks, seed=seed, epoch=epochs[:, None], stream=stream)
    high, low = (np.where(second, drawn[word + 2], drawn[word]) for word in range(2))
    keys: U64 = high << np.uint64(32) | low
    return keys
