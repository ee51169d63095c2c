"""The memory that the compiled functions work in, and where its parts begin.

They hand on what they find in `work`, an array of int64, by the constants from DONE on.
"""

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

LOOK = 11  # bits that are looked up at once; with 10 or 12 no faster
ENTRIES = 1 << LOOK

DONE = 0  # 1 once the pixels are those of libjpeg
HEIGHT, WIDTH, COMPONENTS = 1, 2, 3  # of the frame header
SCAN = 4  # where in the file the entropy-coded bytes begin
JFIF, ADOBE = 5, 6  # 1 if there is such a segment; 1 + its transform
ROWS = 7  # of RGB that are made, or need not be
COMPONENT = 8  # of component c from COMPONENT + c * FIELDS on:
FIELDS, ID, ACROSS, DOWN, QUANTS, DC, AC, LAST = 8, 0, 1, 2, 3, 4, 5, 6
QUANT = 32  # where in the file each of four quantisation tables begins; 0: there is none
CODES = 36  # the same of the Huffman tables: DC 0, DC 1, AC 0, AC 1
STREAM = 40  # the state of `codes.next_block` between rows: at, left, bits
TURNED = 43  # 1 if a segment may say that it is turned
PLAIN = 44  # 1 once the header is one of those that are decoded here
BOX = 48  # of the pixels that are wanted: top, left, bottom, right
HEADER = 52  # all before it is zeroed for each file; what follows serves the next one, too

LIMITS, SHIFTS, LENGTHS = 52, 124, 18  # of each of CODES, by the length of a code: `long_code`
DC_TABLES = 256
AC_TABLES = DC_TABLES + 2 * ENTRIES
SINGLE = AC_TABLES + 2 * ENTRIES  # one table before its entries are paired
SEEN, SEEN_BYTES = SINGLE + ENTRIES, 273  # what each of CODES was made of: bits of a value, bytes
CODED, PLANES, SHORTS = (SEEN + 4 * SEEN_BYTES + i for i in range(3))  # addresses of memory
WORK = SHORTS + 1  # int64 in all

LARGEST = 16_383  # of a coefficient and of a sum: above it libjpeg's vectors wrap around
SLACK = 4_096  # bytes behind those of a scan: a block may ask for 1.4 kB before it is found out
QUANT_ROWS, CHROMA_ROWS = 128, 320  # in `shorts`, int16, behind the coefficients of a block
CHROMA_EDGE = 64  # of a row of sums, beside its samples: what vectors may read
ROW = 128  # bytes of a plane's row beyond its pixels, and of a step beyond a picture's


class DecodeMemory(threading.local):
    """A thread's memory, which grows to its largest picture: new memory costs a fifth more."""

    def __init__(self) -> None:
        work = np.zeros(WORK, np.int64)
        self.work = work.data  # whose items are read in half the time
        self.place: int = work.ctypes.data
        self.bytes, self.pixels = -1, -1
        self.arrays: list[npt.NDArray[Any]] = []

    def fit(self, size: int, height: int, width: int) -> None:
        """Have memory for a file of `size` bytes at the addresses in `work`."""
        pixels = (height + 15 & -16) * (width + 15 & -16) + width  # of a component, and a row
        if size <= self.bytes and pixels <= self.pixels:
            return
        self.bytes, self.pixels = max(size, self.bytes), max(pixels, self.pixels)
        self.arrays = [
            np.empty(self.bytes + SLACK, np.uint8),
            np.empty(3 * (self.pixels + ROW), np.uint8),
            np.empty(CHROMA_ROWS + 2 * (self.pixels // 16 + CHROMA_EDGE), np.int16),
        ]
        for number, array in zip((CODED, PLANES, SHORTS), self.arrays, strict=True):
            self.work[number] = array.ctypes.data
