"""A whole JPEG to RGB: the function that is compiled.

Needs numba. Only a process that compiles imports this file and those that it imports.
"""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from numba import carray, types

from ..kernels import kernel
from .blocks import LOW_PLACES, PASS, inverse_dct
from .cells import at_address, get, put, put_word
from .codes import ORDER, next_block, tables, unstuffed
from .colours import LANES, STEP, doubled_row, plain_row, sums
from .memory import (
    AC,
    ACROSS,
    CHROMA_EDGE,
    CHROMA_ROWS,
    CODED,
    COMPONENT,
    COMPONENTS,
    DC,
    DONE,
    DOWN,
    FIELDS,
    HEADER,
    HEIGHT,
    LARGEST,
    LAST,
    PLAIN,
    PLANES,
    QUANT,
    QUANT_ROWS,
    QUANTS,
    ROWS,
    SCAN,
    SHORTS,
    SLACK,
    STREAM,
    WIDTH,
    WORK,
)
from .segments import header

U8 = npt.NDArray[np.uint8]
I16 = npt.NDArray[np.int16]
I64 = npt.NDArray[np.int64]
Pointer = Any  # of numba's kind
NAME = "sslpipe_jpeg"
END_OF_IMAGE = 0xD9
pointer, number = types.CPointer, types.int64
SIGNATURE = types.void(
    pointer(types.uint8), number, pointer(types.uint8), number, number, pointer(number)
)
u64 = np.uint64


@kernel
def ready(data: U8, work: I64, shorts: I16) -> bool:
    """Make the tables of a file whose header was read; False: they are for libjpeg."""
    most = 1
    for c in range(get(work, COMPONENTS)):
        source = get(work, QUANT + get(work, COMPONENT + c * FIELDS + QUANTS))
        for k in range(64):
            quant = get(data, source + k)
            put(shorts, QUANT_ROWS + 64 * c + get(ORDER, k), quant)
            most = max(most, quant)
    largest = 0
    while (2 << largest) * most <= LARGEST + 1 and largest < 10:
        largest += 1
    return tables(data, work, largest)


@kernel
def fill(plane: U8, to: int, pitch: int, level: int) -> None:
    """A block of one colour, from its DC coefficient times its quant."""
    value = min(max((level + 4 >> 3) + 128, 0), 255) * 0x0101010101010101
    for row in range(8):
        put_word(plane, to + row * pitch, value)


@kernel
def row_of_blocks(
    data: U8, work: I64, shorts: I16, coded: U8, planes: U8, across: int, pitch: int, room: int,
    row: int, end: int,
) -> bool:  # fmt: skip
    """All blocks of a row of MCUs to the planes.

    across: MCUs. pitch: of the planes, pixels. room: bytes of a plane. Goes on
    where work[STREAM:] says. Returns whether all are good.
    """
    at, left, bits = get(work, STREAM), get(work, STREAM + 1), u64(get(work, STREAM + 2))
    good, coefficients = True, shorts[:QUANT_ROWS]
    for mcu in range(across):
        for c in range(get(work, COMPONENTS)):
            field = COMPONENT + c * FIELDS
            wide, high = get(work, field + ACROSS), get(work, field + DOWN)
            quants = shorts[QUANT_ROWS + 64 * c : QUANT_ROWS + 64 * c + 64]
            dc, ac = get(work, field + DC), get(work, field + AC)
            corner = c * room + row * high * 8 * pitch + mcu * wide * 8
            for place in range(wide * high):
                to = corner + place // wide * 8 * pitch + place % wide * 8
                at, left, bits, fine, places = next_block(
                    data, work, coded, at, left, bits, dc, ac, quants, coefficients
                )
                last = get(work, field + LAST) + get(coefficients, 0)
                put(work, field + LAST, last)
                put(coefficients, 0, last)
                level = last * get(quants, 0)
                good &= fine and abs(level) <= LARGEST and at <= end + 8  # else bits were made up
                if not good:
                    return False
                if places == 1:
                    good &= abs(level) <= LARGEST >> PASS
                    fill(planes, to, pitch, level)
                elif places <= LOW_PLACES:
                    good &= inverse_dct(coefficients, quants, planes, to, pitch, 4) == 0
                else:
                    good &= inverse_dct(coefficients, quants, planes, to, pitch, 8) == 0
    put(work, STREAM, at)
    put(work, STREAM + 1, left)
    put(work, STREAM + 2, np.int64(bits))
    return good


@kernel
def grey_row(planes: U8, at: int, out: U8, to: int, width: int) -> None:
    for x in range(width):
        for c in range(3):
            put(out, to + 3 * x + c, get(planes, at + x))


@kernel
def colour_row(
    work: I64, shorts: I16, planes: U8, pitch: int, room: int, y: int, out: U8, to: int
) -> None:
    """Row y to out[to:], in whole steps of STEP pixels."""
    down, height, width = get(work, COMPONENT + DOWN), get(work, HEIGHT), get(work, WIDTH)
    at, count, half = y * pitch, (width + STEP - 1) // STEP, (width + 1) // 2
    blue, red = planes[room:], planes[2 * room :]
    if get(work, COMPONENT + ACROSS) == 1:
        plain_row(out, to, planes, at, blue, red, at, count * (STEP // LANES))
        return
    size = (shorts.size - CHROMA_ROWS) // 2
    blues, reds = shorts[CHROMA_ROWS : CHROMA_ROWS + size], shorts[CHROMA_ROWS + size :]
    near, far, thrice, once, shift, left, right = y, y, 1, 0, 2, 1, 2
    if down == 2:
        near, thrice, once, shift, left, right = y // 2, 3, 1, 4, 8, 7
        far = min(max(near + (1 if y % 2 else -1), 0), (height + 1) // 2 - 1)
    sums(blue, near * pitch, far * pitch, thrice, once, half, blues)
    sums(red, near * pitch, far * pitch, thrice, once, half, reds)
    doubled_row(out, to, planes, at, blues, reds, count, shift, left, right)


@kernel
def rows(work: I64, shorts: I16, planes: U8, pitch: int, room: int, stop: int, out: U8) -> None:
    """Rows of RGB up to `stop`. What a step writes behind its row, the next one overwrites."""
    width, start = get(work, WIDTH), get(work, ROWS)
    whole = (width + STEP - 1) // STEP * STEP * 3
    spare = planes[3 * room :]
    for y in range(start, stop):
        to = y * width * 3
        if get(work, COMPONENTS) == 1:
            grey_row(planes, y * pitch, out, to, width)
        else:
            inside = to + whole <= out.size
            target, place = (out, to) if inside else (spare, 0)
            colour_row(work, shorts, planes, pitch, room, y, target, place)
            for i in range(0 if inside else 3 * width):
                put(out, to + i, get(spare, i))
    put(work, ROWS, stop)


@kernel
def all_rows(
    data: U8, work: I64, shorts: I16, coded: U8, planes: U8, room: int, pitch: int, end: int,
    out: U8,
) -> bool:  # fmt: skip
    """Decode the scan, whose bytes are coded[:end], row of MCUs by row of MCUs."""
    side, width, height = 8 * get(work, COMPONENT + DOWN), get(work, WIDTH), get(work, HEIGHT)
    across = (width + 8 * get(work, COMPONENT + ACROSS) - 1) // (8 * get(work, COMPONENT + ACROSS))
    down = (height + side - 1) // side
    for row in range(down):
        good = row_of_blocks(data, work, shorts, coded, planes, across, pitch, room, row, end)
        if not good:
            return False
        # the last row above the next MCUs needs their chroma
        known = height if row == down - 1 else side * (row + 1) - (1 if side == 16 else 0)
        rows(work, shorts, planes, pitch, room, known, out)
    return bool((get(work, STREAM) * 8 - get(work, STREAM + 1) + 7) // 8 == end)


def picture(
    source: Pointer, size: int, target: Pointer, height: int, width: int, numbers: Pointer
) -> None:
    """A JPEG of `size` bytes to (height, width, 3) bytes of RGB; numbers[DONE] is 1 if it is done.

    Where it has other sides, 0 and 0 perhaps, nothing but its header is read. numbers: int64, see
    `memory`: the addresses of memory in which a file and a picture of these sides fit, too.
    """
    work, data = carray(numbers, WORK), carray(source, size)
    for i in range(HEADER):
        work[i] = 0
    work[PLAIN] = header(data, work)
    if work[PLAIN] == 0 or work[HEIGHT] != height or work[WIDTH] != width:
        return
    few = carray(at_address(work[SHORTS]), CHROMA_ROWS + 2 * (width + CHROMA_EDGE), np.int16)
    bytes_of_scan = carray(at_address(work[CODED]), size + SLACK, np.uint8)
    pitch = (width + 15) // 16 * 16
    room = (height + 15) // 16 * 16 * pitch
    memory = carray(at_address(work[PLANES]), 3 * room + 3 * (width + STEP), np.uint8)
    end, marker = unstuffed(data, work[SCAN], size, bytes_of_scan)
    if marker < 0 or get(data, marker + 1) != END_OF_IMAGE or not ready(data, work, few):
        return
    out = carray(target, height * width * 3)
    if all_rows(data, work, few, bytes_of_scan, memory, room, pitch, end, out):
        work[DONE] = 1


def compiled() -> str:
    """The LLVM code of `picture` for this machine, under the name NAME."""
    made = numba.cfunc(SIGNATURE, nogil=True, error_model="numpy")(picture)
    return str(made.inspect_llvm()).replace(made.native_name, NAME)
