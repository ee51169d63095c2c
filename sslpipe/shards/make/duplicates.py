"""Which sources repeat an earlier one. Pure: hashes in, numbers out.

exact: equal content. near: a file is kept unless its 64-bit hash lies within t bits of one that
is kept already, in the order of the keys.

Two hashes that differ in t bits agree on two of t + 2 bands at least (pigeonhole), so sorting by
every pair of bands brings them together, and only what then stands together is compared: for t = 4
and evenly spread hashes 15 sorts of n hashes and n^2 / 350,000 comparisons.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations, count, pairwise

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

BITS = 64


def exact(hashes: Sequence[str | None]) -> dict[int, int]:
    """Repeated item -> the first of the same hash; None repeats nothing."""
    first: dict[str, int] = {}
    found = {}
    for item, digest in enumerate(hashes):
        if digest is not None and first.setdefault(digest, item) != item:
            found[item] = first[digest]
    return found


def near(hashes: Sequence[str | None], bits: int) -> dict[int, int]:
    """Dropped item -> the first kept one whose hash differs in at most `bits` bits.

    Hashes are hexadecimal, of 64 bits.
    """
    same = exact(hashes)  # a thousand equal ones would make half a million pairs
    items = [item for item, digest in enumerate(hashes) if digest and item not in same]
    values = np.array([int(hashes[item] or "", 16) for item in items], np.uint64)
    dropped: dict[int, int] = {}
    for first, second in close_pairs(values, bits).tolist():
        if items[first] not in dropped:
            dropped.setdefault(items[second], items[first])
    return dropped | {item: dropped.get(first, first) for item, first in same.items()}


def close_pairs(values: U64, bits: int) -> I64:
    """All pairs i < j of values that differ in at most `bits` bits: (n, 2), by j, then by i."""
    found = [np.empty(0, np.int64)]
    for mask in masks(bits + 2):
        for first, second in equal_pairs(values & mask):
            close = ones(values[first] ^ values[second]) <= bits
            found.append(second[close] * len(values) + first[close])
    joined = np.unique(np.concatenate(found))  # some stand together in several sorts
    second, first = np.divmod(joined, max(len(values), 1))
    return np.stack([first, second], axis=1)


def masks(bands: int) -> Iterator[np.uint64]:
    """The bits of every pair of `bands` bands, which are as equal in width as can be."""
    edges = [BITS * band // bands for band in range(bands + 1)]
    parts = [(1 << high) - (1 << low) for low, high in pairwise(edges)]
    for one, other in combinations(parts, 2):
        yield np.uint64(one | other)


def equal_pairs(keys: U64) -> Iterator[tuple[I64, I64]]:
    """All pairs i < j of equal keys, in work proportional to their number after one sort."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    at = np.arange(len(keys))
    for step in count(1):
        at = at[at + step < len(keys)]
        at = at[ordered[at + step] == ordered[at]]
        if not len(at):
            return
        yield order[at], order[at + step]


def ones(values: U64) -> npt.NDArray[np.int64]:
    """Count the bits that are set in each value, (n,)."""
    table = np.array([number.bit_count() for number in range(256)])
    counted: I64 = table[values.view(np.uint8)].reshape(-1, 8).sum(1)
    return counted
