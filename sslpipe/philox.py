"""Philox 4x32-10, in NumPy and in torch: 128 random bits of 128 bits of counter and 64 of key.

Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Random123). What stands in
counter and key is for rng.py to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # workers import this module, and must not wait for torch
    from torch import Tensor

U64 = npt.NDArray[np.uint64]
M0, M1 = 0xD2511F53, 0xCD9E8D57
W0, W1 = 0x9E3779B9, 0xBB67AE85
MASK = 0xFFFFFFFF
ROUNDS = 10
# arrays without axes, as NumPy takes 0.3 us to make one of a scalar
FIRST, SECOND, LOW, HALF = (np.array(word, dtype=np.uint64) for word in (M0, M1, MASK, 32))
# what is added to both words of the key in each round, (ROUNDS, 2)
WEYL = np.arange(ROUNDS, dtype=np.uint64)[:, None] * np.array([W0, W1], dtype=np.uint64)
PART = 1 << 12  # counters that are worked on at once: 200 kB


def philox(counter: tuple[U64, U64, U64, U64], key: tuple[U64, U64]) -> tuple[U64, U64, U64, U64]:
    """Compute Philox 4x32-10 in NumPy; words are u32 held in uint64, all six arrays broadcast.

    Of few words the calls of NumPy are what it costs, of many the memory: so all is done in place,
    on flat arrays that a core's cache holds.
    """
    shape = np.broadcast(*counter, *key).shape
    out = np.empty((4, *shape), dtype=np.uint64)
    for place, word in enumerate(counter):
        out[place, ...] = word
    if np.size(key[0]) == np.size(key[1]) == 1:
        do_in_parts(out.reshape(4, -1), one_key(*map(int, key)))
    else:
        do_in_parts(out, round_keys(np.array(np.broadcast_arrays(*key))))
    return out[0, ...], out[1, ...], out[2, ...], out[3, ...]


def do_in_parts(words_4: U64, keys: Sequence[tuple[U64, U64]]) -> None:
    """Do all rounds of Philox in the memory of the words, (4, n, ...).

    keys: alike for all n, that is without that axis, else all n are worked on at once.
    """
    alike = keys[0][0].ndim < words_4.ndim - 1
    step = max(1, PART // max(1, words_4[0, :1].size)) if alike else words_4.shape[1]
    for start in range(0, words_4.shape[1], max(1, step)):
        c0, c1, c2, c3 = words_4[:, start : start + step]
        p0, p1 = np.empty((2, *c0.shape), dtype=np.uint64)
        for k0, k1 in keys:
            np.multiply(c0, FIRST, out=p0)
            np.multiply(c2, SECOND, out=p1)
            np.right_shift(p1, HALF, out=c0)
            np.right_shift(p0, HALF, out=c2)
            c0 ^= c1
            c2 ^= c3
            c0 ^= k0
            c2 ^= k1
            np.bitwise_and(p1, LOW, out=c1)
            np.bitwise_and(p0, LOW, out=c3)


def round_keys(key_2: U64) -> list[tuple[U64, U64]]:
    """Make both words of the keys of each round; key_2: (2, ...)."""
    steps = WEYL.reshape(ROUNDS, 2, *[1] * (key_2.ndim - 1))
    return [(k0, k1) for k0, k1 in (key_2 + steps) & LOW]


@lru_cache(maxsize=256)
def one_key(low: int, high: int) -> list[tuple[U64, U64]]:
    """Make the same of one key for all, arrays without axes: NumPy takes scalars less readily."""
    keys = round_keys(np.array([[low], [high]], dtype=np.uint64))
    return [(k0.reshape(()), k1.reshape(())) for k0, k1 in keys]


def philox_torch(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the same in torch: u32 words are held in int64, so it runs on every device."""

    def mulhilo(a: Tensor, m: int) -> tuple[Tensor, Tensor]:
        # 16-bit split: each partial product stays below 2**49, so int64 never overflows
        low, high = (a & 0xFFFF) * m, (a >> 16) * m
        t = high + (low >> 16)
        return (t >> 16) & MASK, ((t & 0xFFFF) << 16) | (low & 0xFFFF)

    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        (h0, l0), (h1, l1) = mulhilo(c0, M0), mulhilo(c2, M1)
        c0, c1, c2, c3 = h1 ^ c1 ^ k0, l1, h0 ^ c3 ^ k1, l0
        k0, k1 = (k0 + W0) & MASK, (k1 + W1) & MASK
    return c0, c1, c2, c3
