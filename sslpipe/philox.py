"""The generator Philox 4x32-10, in NumPy and in torch: four words of four, by a key of two.

Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Random123). Who draws what of it:
rng.py.
"""

from __future__ import annotations

import math
import threading
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # workers import this module, and must not wait for torch
    from torch import Tensor

U64 = npt.NDArray[np.uint64]
F64 = npt.NDArray[np.float64]
Words = tuple[U64, U64, U64, U64]
M0, M1 = 0xD2511F53, 0xCD9E8D57
W0, W1 = 0x9E3779B9, 0xBB67AE85
MASK = 0xFFFFFFFF
ROUNDS = 10
AT_ONCE = 1 << 13  # counters that are kept in the cache: 0.5 MB
FACTORS = np.array([M0, M1], dtype=np.uint64)
WEYL = np.array([W0, W1], dtype=np.uint64)


class Scratch(threading.local):
    """Memory of a thread in which it draws, kept if it is no more than AT_ONCE counters take."""

    def __init__(self) -> None:
        self._kept = np.empty(8 * AT_ONCE, dtype=np.uint64)

    def empty(self, shape: tuple[int, ...]) -> U64:
        """An array in which something arbitrary stands."""
        size = math.prod(shape)
        whole = self._kept if size <= len(self._kept) else np.empty(size, dtype=np.uint64)
        return whole[:size].reshape(shape)


def philox(counter: Words, key: tuple[U64, U64]) -> Words:
    """Compute Philox 4x32-10 in NumPy; words are u32 held in uint64, all six arrays broadcast.

    Both halves of a round are one array, and what a round makes goes where the last one read: every
    call that is saved is one less for which a trainer's thread may wait.
    """
    shape = np.broadcast_shapes(*(np.shape(each) for each in (*counter, *key)))
    return philox_in(
        np.empty((4, 2, *shape), dtype=np.uint64), counter, round_keys(key, len(shape))
    )


def philox_in(
    room: U64, counter: tuple[U64, U64, U64, U64], keys: U64
) -> tuple[U64, U64, U64, U64]:
    """Compute `philox` in memory that is given, (4, 2, ...): what is returned lies there."""
    even, odd, product, high = room
    even[0], odd[0], even[1], odd[1] = counter
    factors = FACTORS.reshape(2, *[1] * (even.ndim - 1))
    mask, shift = np.uint64(MASK), np.uint64(32)
    for key in keys:
        np.multiply(even, factors, product)
        np.right_shift(product, shift, high)
        np.bitwise_xor(high[::-1], odd, even)
        np.bitwise_xor(even, key, even)
        np.bitwise_and(product[::-1], mask, odd)
    return even[0], odd[0], even[1], odd[1]


def round_keys(key: tuple[U64, U64], axes: int) -> U64:
    """Compute the keys of all rounds, (ROUNDS, 2, ...), which broadcast with arrays of `axes`.

    They stand where they are until this thread asks for others.
    """
    low, high = key
    if np.size(low) == np.size(high) == 1:
        return one_key(np.asarray(low).item(), np.asarray(high).item(), axes)
    return keys_of_rounds(key, axes)


@lru_cache(maxsize=1024)
def one_key(low: int, high: int, axes: int) -> U64:
    """Compute the same of one key for all, as a batch of one epoch has: a third of a small draw."""
    return keys_of_rounds((np.array(low, np.uint64), np.array(high, np.uint64)), axes).copy()


def keys_of_rounds(key: tuple[U64, U64], axes: int) -> U64:
    """Compute the keys of all rounds anew, in memory that the next ones of this thread take."""
    shape = np.broadcast_shapes(*(np.shape(each) for each in key))
    found = KEYS.empty((ROUNDS, 2, *[1] * (axes - len(shape)), *shape))
    found[0, 0], found[0, 1] = key
    steps = np.outer(np.arange(1, ROUNDS, dtype=np.uint64), WEYL)
    np.add(found[0], steps.reshape(ROUNDS - 1, 2, *[1] * axes), found[1:])
    np.bitwise_and(found, np.uint64(MASK), found)
    return found


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


def philox_blocks(counter: Words, key: tuple[U64, U64], shape: tuple[int, ...]) -> U64:
    """Compute `philox` of n counters whose first two words are (n, ...): (n, 4, *shape).

    Some of n at a time, in memory that is used again: fresh pages cost more than drawing.
    """
    blocks, streams, low, high = counter
    keys, few = round_keys(key, 1 + len(shape)), max(1, AT_ONCE // max(1, math.prod(shape)))
    room = SCRATCH.empty((4, 2, min(few, len(blocks)), *shape))
    drawn = np.empty((len(blocks), 4, *shape), dtype=np.uint64)
    for start in range(0, len(blocks), few):
        some = slice(start, start + few)
        mine = room[:, :, : len(blocks[some])]
        for word, out in enumerate(philox_in(mine, (blocks[some], streams[some], low, high), keys)):
            drawn[some, word] = out
    return drawn


def fractions_there(raw: U64) -> F64:
    """Make float64 in [0, 1) of the upper 24 bits of (n, ...) words, in their own memory.

    Fresh pages cost more than that.
    """
    made: F64 = raw.view(np.float64)
    few = max(1, AT_ONCE // max(1, raw[:1].size))  # for which NumPy's own copy is small, too
    for start in range(0, len(raw), few):
        some = slice(start, start + few)
        np.right_shift(raw[some], np.uint64(8), raw[some])
        np.multiply(raw[some], 2.0**-24, made[some])
    return made


SCRATCH, KEYS = Scratch(), Scratch()
