"""Huffman tables of a JPEG as tables of what the next LOOK bits are. Needs numba.

An entry of a table of AC codes, 64 bits from the lowest on: 6 how many bits it takes (0: a slow
one), 4 how many its first code takes alone, 6 how far on its first coefficient is, 8 its second,
8 how far on the next code is (END more behind the last coefficient of a block), 16 the first
value, 16 the second. A slow entry: the code's length from bit 8 on
(0: longer than LOOK) and its symbol from bit 16 on. One of DC codes: bits in all, and the value.
"""

import numpy as np
import numpy.typing as npt

from ..kernels import kernel
from .cells import get, put
from .memory import (
    AC_TABLES,
    CODES,
    DC_TABLES,
    ENTRIES,
    LENGTHS,
    LIMITS,
    LOOK,
    SEEN,
    SEEN_BYTES,
    SHIFTS,
    SINGLE,
)

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]

END = 128  # more than any place in a block


@kernel
def signed(raw: int, size: int) -> int:
    """The value that `size` bits stand for (F.2.2.1, EXTEND)."""
    return raw if raw >> (size - 1) else raw - (1 << size) + 1


@kernel
def dc_entry(symbol: int, length: int, rest: int) -> int:
    """rest: the bits of the index behind the code, LOOK - length of them."""
    left = LOOK - length - symbol
    if left < 0:
        return length << 8 | symbol << 16
    value = signed(rest >> left, symbol) if symbol else 0
    return value << 32 | length + symbol


@kernel
def ac_entry(symbol: int, length: int, rest: int, largest: int) -> int:
    """largest: bits of a value that needs no check for its size."""
    run, size = symbol >> 4, symbol & 15
    if size == 0:  # sixteen zeros, or the end of the block
        return (16 if run == 15 else END) << 24 | length << 6 | length
    left = LOOK - length - size
    if left < 0 or size > largest:
        return length << 8 | symbol << 16
    value, bits = signed(rest >> left, size) & 0xFFFF, length + size
    return value << 32 | (run + 1) << 24 | (run + 1) << 16 | run << 10 | bits << 6 | bits


@kernel
def build_table(data: U8, work: I64, which: int, largest: int) -> bool:
    """Table `which` of CODES, of AC as SINGLE entries; False: it is no table of codes."""
    counts, is_dc, symbol_at = get(work, CODES + which), which < 2, 0
    to = DC_TABLES + which * ENTRIES if is_dc else SINGLE
    code = 0
    for i in range(ENTRIES):
        put(work, to + i, 0)
    for length in range(1, 17):
        put(work, SHIFTS + which * LENGTHS + length, symbol_at - code)
        for _ in range(get(data, counts + length - 1)):
            symbol = get(data, counts + 16 + symbol_at)
            if code >= 1 << length or (symbol > 11 if is_dc else symbol & 15 > 10):
                return False
            left = LOOK - length
            if left >= 0:
                for rest in range(1 << left):
                    entry = (
                        dc_entry(symbol, length, rest)
                        if is_dc
                        else ac_entry(symbol, length, rest, largest)
                    )
                    put(work, to + (code << left) + rest, entry)
            symbol_at, code = symbol_at + 1, code + 1
        put(work, LIMITS + which * LENGTHS + length, code)
        code <<= 1
    return True


@kernel
def pair(work: I64, to: int) -> None:
    """The entries of SINGLE, with a second coefficient where its bits are known, too."""
    for i in range(ENTRIES):
        entry = get(work, SINGLE + i)
        bits, on = entry & 63, entry >> 24 & 0xFF
        if bits and on < END and entry >> 32 & 0xFFFF:  # it has a value, and the block goes on
            second = get(work, SINGLE + (i << bits & ENTRIES - 1))
            more = second & 63
            if more and bits + more <= LOOK:
                entry = entry & 0xFFFF_0000_FFC0 | bits + more | second >> 32 << 48
                entry |= (second >> 10 & 63) + on << 16 | (second >> 24 & 0xFF) + on << 24
        put(work, to + i, entry)


@kernel
def seen(data: U8, work: I64, which: int, largest: int) -> bool:
    """Whether a table is that of the file before, as most are; it is noted for the next one."""
    at, to, size = get(work, CODES + which), SEEN + which * SEEN_BYTES, 16
    for i in range(16):
        size += get(data, at + i)
    same = bool(get(work, to) == largest + 1)
    put(work, to, largest + 1)
    for i in range(size):
        byte = get(data, at + i)
        same &= get(work, to + 1 + i) == byte
        put(work, to + 1 + i, byte)
    return same


@kernel
def tables(data: U8, work: I64, largest: int) -> bool:
    """All Huffman tables of a file; False: one is none."""
    good = True
    for which in range(4):
        if get(work, CODES + which) and not seen(data, work, which, largest):
            good &= build_table(data, work, which, largest)
            if which >= 2:
                pair(work, AC_TABLES + (which - 2) * ENTRIES)
    if not good:
        for which in range(4):
            put(work, SEEN + which * SEEN_BYTES, 0)
    return good
