"""Which sources repeat an earlier one. Pure: hashes in, numbers out.

exact: equal content. near: an image is kept unless its 64-bit hash lies within t bits of one that
is kept already, in the order of the keys. Of t + 1 bands of a hash, one is equal in any two that
differ in t bits (pigeonhole), so only images that share a band are compared: n^2 (t + 1) /
2^(64 / (t + 1)) comparisons of evenly spread hashes, n^2 / 1,400 for t = 4.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

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
    """Dropped item -> the first kept one whose hash differs in at most `bits` bits."""
    kept: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)  # band -> item, hash
    found = {}
    for item, digest in enumerate(hashes):
        if digest is None:
            continue
        value = int(digest, 16)
        keys = list(bands(value, bits + 1))
        twins = [
            other
            for key in keys
            for other, its in kept.get(key, ())
            if (its ^ value).bit_count() <= bits
        ]
        if twins:
            found[item] = min(twins)
            continue
        for key in keys:
            kept[key].append((item, value))
    return found


def bands(value: int, count: int) -> Iterator[tuple[int, int]]:
    """(number, bits) of `count` bands of as equal a width as can be, which cover all 64 bits."""
    edges = [BITS * band // count for band in range(count + 1)]
    for band, (low, high) in enumerate(pairwise(edges)):
        yield band, value >> low & (1 << high - low) - 1
