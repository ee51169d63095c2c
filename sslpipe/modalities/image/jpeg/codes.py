"""The entropy-coded bytes of a baseline scan: Huffman codes, several at a time. Needs numba.

libjpeg looks up 8 bits, finds one code's length and symbol, then takes the bits of its value. Here
LOOK bits give the values of one or two coefficients at once (5 bits each in a photo at quality 92),
and the next bits are asked for before they are needed. ISO/IEC 10918-1, annexes C and F.
What entries hold stands in `code_tables`.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from ..kernels import inlined, kernel
from .cells import clear, get, put, put_word, reverse, word
from .code_tables import END, signed
from .memory import (
    AC_TABLES,
    CODES,
    DC_TABLES,
    ENTRIES,
    LARGEST,
    LENGTHS,
    LIMITS,
    LOOK,
    SHIFTS,
)

U8 = npt.NDArray[np.uint8]
I16 = npt.NDArray[np.int16]
I64 = npt.NDArray[np.int64]
Bits = Any  # uint64, the next bit of the stream highest
u64 = np.uint64

STEPS = 3  # look-ups for which the bits at hand suffice, the last of any kind
SPARE = 64  # where a value goes that is of no coefficient
ORDER = np.array(  # zigzag place -> place in a block by rows
    [0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20,
     13, 6, 7, 14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59,
     52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63, *[SPARE] * (2 * END - 64)], np.uint8,
)  # fmt: skip


@kernel
def unstuffed(data: U8, at: int, end: int, coded: U8) -> tuple[int, int]:
    """Copy a scan's bytes without the zeros that follow each 0xFF; their count, and where it ends.

    It ends at the first marker; -1: there is none.
    """
    ones, high = 0x0101010101010101, -0x7F7F7F7F7F7F7F80
    n = 0
    while at + 10 <= end:
        eight = word(data, at)
        put_word(coded, n, eight)
        if ((~eight - ones) & eight & high) == 0:  # none of them is 0xFF
            at, n = at + 8, n + 8
            continue
        while get(data, at) != 0xFF:
            put(coded, n, get(data, at))
            at, n = at + 1, n + 1
        if get(data, at + 1) != 0:
            return n, at
        put(coded, n, 0xFF)
        at, n = at + 2, n + 1
    while at + 1 < end:
        byte = get(data, at)
        if byte == 0xFF:
            if get(data, at + 1) != 0:
                return n, at
            at += 1
        put(coded, n, byte)
        at, n = at + 1, n + 1
    return n, -1


@kernel
def long_code(data: U8, work: I64, which: int, bits: Bits) -> tuple[int, int]:
    """Length and symbol of a code of more than LOOK bits; length 0: there is no such code."""
    for length in range(LOOK + 1, 17):
        code = np.int64(bits >> u64(64 - length))
        if code < get(work, LIMITS + which * LENGTHS + length):
            symbols = get(work, CODES + which) + 16
            return length, get(data, symbols + code + get(work, SHIFTS + which * LENGTHS + length))
    return 0, 0


@kernel
def slow_code(data: U8, work: I64, which: int, entry: int, bits: Bits) -> tuple[int, int]:
    """Length and symbol of the code of a slow entry; length 0: there is no such code."""
    if entry:
        return entry >> 8 & 0xFF, entry >> 16 & 0xFF
    return long_code(data, work, which, bits)


@kernel
def received(bits: Bits, size: int) -> int:
    """The value in the next `size` bits, 1 or more."""
    raw: Any = np.int64(bits >> u64(64 - size))
    return signed(raw, size)


@kernel
def dc_value(data: U8, work: I64, which: int, bits: Bits) -> tuple[int, int]:
    """How many bits the code of a DC difference takes, and the difference; 0: it is none."""
    entry = get(work, DC_TABLES + which * ENTRIES + np.int64(bits >> u64(64 - LOOK)))
    if entry & 63:
        return entry & 63, entry >> 32
    length, size = slow_code(data, work, which, entry, bits)
    if length == 0 or size == 0:  # no value at all is never slow unless its code is long
        return length, 0
    return length + size, received(bits << u64(length), size)


@inlined
def next_block(
    data: U8, work: I64, coded: U8, at: int, left: int, bits: Bits, dc: int, ac: int, quants: I16,
    coefficients: I16,
) -> tuple[int, int, Bits, bool, int]:  # fmt: skip
    """The next block's coefficients, by rows; its DC difference stands in place of the DC value.

    at: of the bytes that follow `bits`, whose first `left` bits are those of the stream.
    Returns at, left, bits, whether it is a good block, and the zigzag place behind its last value.
    """
    clear(coefficients)
    bits |= reverse(word(coded, at)) >> u64(left)
    at, left = at + (63 - left >> 3), left | 56
    length, value = dc_value(data, work, dc, bits)
    good = length > 0
    bits, left = bits << u64(length), left - length
    put(coefficients, 0, value)
    table, k = AC_TABLES + ac * ENTRIES, 1
    while k < 64 and good:
        bits |= reverse(word(coded, at)) >> u64(left)
        at, left = at + (63 - left >> 3), left | 56
        for _ in range(STEPS):
            entry = get(work, table + np.int64(bits >> u64(64 - LOOK)))
            taken = entry & 63
            if taken == 0:
                length, symbol = slow_code(data, work, 2 + ac, entry, bits)
                run, size = symbol >> 4, symbol & 15
                bits, left = bits << u64(length), left - length
                good = length > 0
                if size == 0:
                    k += 16 if run == 15 else END
                else:
                    value, place = received(bits, size), get(ORDER, k + run)
                    bits, left, k = bits << u64(size), left - size, k + run + 1
                    put(coefficients, place, value)
                    good &= abs(value * get(quants, place)) <= LARGEST
                break
            first = k + (entry >> 10 & 63)
            put(coefficients, get(ORDER, first), entry >> 32)
            put(coefficients, get(ORDER, k + (entry >> 16 & 0xFF)), entry >> 48)
            k += entry >> 24 & 0xFF
            if k >= 64:
                if first == 63:  # the block is full: its second code is of the next one
                    taken, k = entry >> 6 & 15, 64
                bits, left = bits << u64(taken), left - taken
                break
            bits, left = bits << u64(taken), left - taken
    places = k - END if k >= END else k
    return at, left, bits, good and places <= 64, places


@inlined
def passed_block(
    data: U8, work: I64, coded: U8, at: int, left: int, bits: Bits, dc: int, ac: int
) -> tuple[int, int, Bits, bool, int]:
    """What `next_block` does, but no coefficient is kept; its DC difference comes last."""
    bits |= reverse(word(coded, at)) >> u64(left)
    at, left = at + (63 - left >> 3), left | 56
    length, value = dc_value(data, work, dc, bits)
    good = length > 0
    bits, left = bits << u64(length), left - length
    table, k = AC_TABLES + ac * ENTRIES, 1
    while k < 64 and good:
        bits |= reverse(word(coded, at)) >> u64(left)
        at, left = at + (63 - left >> 3), left | 56
        for _ in range(STEPS):
            entry = get(work, table + np.int64(bits >> u64(64 - LOOK)))
            taken = entry & 63
            if taken == 0:
                length, symbol = slow_code(data, work, 2 + ac, entry, bits)
                run, size = symbol >> 4, symbol & 15
                bits, left = bits << u64(length + size), left - length - size
                good = length > 0
                k += run + 1 if size else 16 if run == 15 else END
                break
            first = k + (entry >> 10 & 63)
            k += entry >> 24 & 0xFF
            if k >= 64:
                if first == 63:
                    taken, k = entry >> 6 & 15, 64
                bits, left = bits << u64(taken), left - taken
                break
            bits, left = bits << u64(taken), left - taken
    places = k - END if k >= END else k
    return at, left, bits, good and places <= 64, value
