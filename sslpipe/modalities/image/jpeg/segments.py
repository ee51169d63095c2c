"""The segments of a JPEG before its scan: frame, tables, and what they say of colours. Needs numba.

Only what nearly all files are is read: baseline, one scan, YCbCr in the usual samplings or grey, no
restart markers. Everything else is left to libjpeg; so is every file in which something is odd.
"""

import numpy as np
import numpy.typing as npt

from ..kernels import kernel
from .cells import get, put
from .memory import (
    AC,
    ACROSS,
    ADOBE,
    CODES,
    COMPONENT,
    COMPONENTS,
    DC,
    DOWN,
    FIELDS,
    HEIGHT,
    ID,
    JFIF,
    LAST,
    QUANT,
    QUANTS,
    SCAN,
    TURNED,
    WIDTH,
)

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]


@kernel
def two(data: U8, at: int) -> int:
    """The two bytes from `at` on, as a number."""
    return int(get(data, at) << 8 | get(data, at + 1))


@kernel
def quantisation(data: U8, work: I64, at: int, end: int) -> bool:
    """Note where the tables of a DQT segment are; False: not of 8 bits, or cut."""
    while at + 65 <= end:
        if get(data, at) > 3:  # 16 bits, or no table of the four
            return False
        put(work, QUANT + get(data, at), at + 1)
        at += 65
    return at == end


@kernel
def huffman(data: U8, work: I64, at: int, end: int) -> bool:
    """Note where the tables of a DHT segment are; False: not one of two, or cut."""
    while at + 17 <= end:
        kind, which, count = get(data, at) >> 4, get(data, at) & 15, 0
        for length in range(16):
            count += get(data, at + 1 + length)
        if kind > 1 or which > 1 or count > 256 or at + 17 + count > end:
            return False
        put(work, CODES + 2 * kind + which, at + 1)
        at += 17 + count
    return at == end


@kernel
def frame(data: U8, work: I64, at: int, end: int) -> bool:
    """Read an SOF0 segment; False: not of 8 bits, or not of one or three components."""
    count = get(data, at + 5)
    if get(data, at) != 8 or end != at + 6 + 3 * count or (count != 1 and count != 3):
        return False
    put(work, HEIGHT, two(data, at + 1))
    put(work, WIDTH, two(data, at + 3))
    put(work, COMPONENTS, count)
    for c in range(count):
        to, source = COMPONENT + c * FIELDS, at + 6 + 3 * c
        put(work, to + ID, get(data, source))
        put(work, to + ACROSS, get(data, source + 1) >> 4)
        put(work, to + DOWN, get(data, source + 1) & 15)
        put(work, to + QUANTS, get(data, source + 2))
    return True


@kernel
def start_of_scan(data: U8, work: I64, at: int, end: int) -> bool:
    """Read an SOS segment; False: not of all components in their order, or not of a whole block."""
    count = get(data, at)
    if count == 0 or count != get(work, COMPONENTS) or end != at + 4 + 2 * count:
        return False
    for c in range(count):
        to, source = COMPONENT + c * FIELDS, at + 1 + 2 * c
        tables = get(data, source + 1)
        if get(data, source) != get(work, to + ID) or tables >> 4 > 1 or tables & 15 > 1:
            return False
        put(work, to + DC, tables >> 4)
        put(work, to + AC, tables & 15)
        put(work, to + LAST, 0)
    put(work, SCAN, end)
    return two(data, end - 3) == 63 and get(data, end - 1) == 0


@kernel
def marked(data: U8, work: I64, at: int, end: int) -> bool:
    """Note what JFIF and Adobe say in an APPn segment; False: a version that libjpeg warns of."""
    marker, long = get(data, at - 3), end - at >= 12
    four, fifth = two(data, at) << 16 | two(data, at + 2), get(data, at + 4)
    if marker == 0xE0 and end - at >= 14 and four == 0x4A464946 and fifth == 0:  # JFIF
        put(work, JFIF, 1)
        return bool(get(data, at + 5) == 1)
    if marker == 0xEE and long and four == 0x41646F62 and fifth == 0x65:  # Adobe
        put(work, ADOBE, 1 + get(data, at + 11))
    return True


@kernel
def segment(data: U8, work: I64, at: int, end: int) -> bool:
    """One segment, whose marker stands 3 bytes before `at`; False: it is for libjpeg."""
    marker = get(data, at - 3)
    if marker == 0xE1:  # EXIF or XMP
        put(work, TURNED, 1)
    if marker == 0xDB:
        return quantisation(data, work, at, end)
    if marker == 0xC4:
        return huffman(data, work, at, end)
    if marker == 0xC0:
        return get(work, COMPONENTS) == 0 and end - at >= 9 and frame(data, work, at, end)
    if marker == 0xDA:
        return start_of_scan(data, work, at, end)
    if marker < 0xE0 or (marker > 0xEF and marker != 0xFE):
        return False
    return end - at < 5 or marked(data, work, at, end)


@kernel
def header(data: U8, work: I64) -> bool:
    """Read all segments up to the scan; False: the file is for libjpeg."""
    at, good = 2, data.size > 4 and two(data, 0) == 0xFFD8
    while good and get(work, SCAN) == 0:
        good = at + 4 < data.size and get(data, at) == 0xFF
        if good:
            end = at + 2 + two(data, at + 2)
            good = at + 4 <= end <= data.size and segment(data, work, at + 4, end)
            at = end
    return good and familiar(work)


@kernel
def has_tables(work: I64, at: int) -> bool:
    """Whether the tables are there that the component at work[at:] names."""
    quants, dc, ac = get(work, at + QUANTS), get(work, at + DC), get(work, at + AC)
    if quants > 3 or get(work, QUANT + quants) == 0:
        return False
    return bool(get(work, CODES + dc) > 0 and get(work, CODES + 2 + ac) > 0)


@kernel
def familiar(work: I64) -> bool:
    """Whether colours, samplings and tables are those that are decoded here."""
    count, halves, ids = get(work, COMPONENTS), 0, 0
    good = get(work, HEIGHT) > 0 and get(work, WIDTH) > 0
    for c in range(count):
        at = COMPONENT + c * FIELDS
        good &= has_tables(work, at)
        halves = halves << 8 | get(work, at + ACROSS) << 4 | get(work, at + DOWN)
        ids = ids << 8 | get(work, at + ID)
    if count == 1:
        return good and halves == 0x11
    adobe = get(work, ADOBE)
    usual = get(work, JFIF) == 1 or adobe == 2 or (adobe == 0 and ids == 0x010203)
    # libjpeg doubles two samples of chroma or fewer without their neighbours
    narrow = get(work, WIDTH) <= 4
    halved = (halves == 0x211111 or halves == 0x221111) and not narrow
    return good and usual and (halved or halves == 0x111111)
