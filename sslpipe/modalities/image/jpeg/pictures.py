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
from .code_tables import tables
from .codes import ORDER, next_block, passed_block, unstuffed
from .colours import LANES, STEP, doubled_row, plain_row, sums
from .memory import (
    AC,
    ACROSS,
    BOX,
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
    pointer(types.uint8), number, pointer(types.uint8), number, number, pointer(number), number,
    number,
)  # fmt: skip
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
def passed(data: U8, work: I64, shorts: I16, coded: U8, count: int, end: int) -> bool:
    """Read over the blocks of some MCUs, of which no pixel is wanted; as `mcus`."""
    at, left, bits = get(work, STREAM), get(work, STREAM + 1), u64(get(work, STREAM + 2))
    for _ in range(count):
        for c in range(get(work, COMPONENTS)):
            field = COMPONENT + c * FIELDS
            dc, ac, quant = get(work, field + DC), get(work, field + AC), QUANT_ROWS + 64 * c
            for _ in range(get(work, field + ACROSS) * get(work, field + DOWN)):
                at, left, bits, good, value = passed_block(
                    data, work, coded, at, left, bits, dc, ac
                )
                last = get(work, field + LAST) + value
                put(work, field + LAST, last)
                if not good or abs(last * get(shorts, quant)) > LARGEST or at > end + 8:
                    return False
    put(work, STREAM, at)
    put(work, STREAM + 1, left)
    put(work, STREAM + 2, np.int64(bits))
    return True


@kernel
def mcus(
    data: U8, work: I64, shorts: I16, coded: U8, planes: U8, pitch: int, room: int, row: int,
    start: int, stop: int, end: int,
) -> bool:  # fmt: skip
    """All blocks of the MCUs from `start` to `stop` of a row of them to the planes.

    pitch: of the planes, pixels. room: bytes of a plane. end: of coded bytes. Goes on
    where work[STREAM:] says. Returns whether all are good.
    """
    at, left, bits = get(work, STREAM), get(work, STREAM + 1), u64(get(work, STREAM + 2))
    good, coefficients = True, shorts[:QUANT_ROWS]
    for mcu in range(start, stop):
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
    work: I64, shorts: I16, planes: U8, pitch: int, room: int, y: int, start: int, count: int,
    out: U8, to: int,
) -> None:  # fmt: skip
    """Row y from column `start`, an even one, to out[to:], in `count` steps of STEP pixels."""
    down, height, width = get(work, COMPONENT + DOWN), get(work, HEIGHT), get(work, WIDTH)
    at, half = y * pitch + start, (width + 1) // 2
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
    first, last = max(start // 2 - 1, 0), min((start + count * STEP) // 2 + 1, half)
    near, far, more = near * pitch + first, far * pitch + first, last - first
    sums(blue, near, far, thrice, once, more, blues[first:])
    sums(red, near, far, thrice, once, more, reds[first:])
    here = start // 2
    doubled_row(out, to, planes, at, blues[here:], reds[here:], count, shift, left, right)


@kernel
def rows(work: I64, shorts: I16, planes: U8, pitch: int, room: int, stop: int, out: U8) -> None:
    """Rows of the box in RGB, up to `stop`.

    What a step writes behind its row, the next one overwrites, or it is outside the box.
    """
    width, left, right = get(work, WIDTH), get(work, BOX + 1) & -2, get(work, BOX + 3)
    count = (right - left + STEP - 1) // STEP
    spare = planes[3 * room :]
    for y in range(get(work, ROWS), stop):
        to = (y * width + left) * 3
        if get(work, COMPONENTS) == 1:
            grey_row(planes, y * pitch + left, out, to, right - left)
        else:
            inside = to + count * STEP * 3 <= out.size
            target, place = (out, to) if inside else (spare, 0)
            colour_row(work, shorts, planes, pitch, room, y, left, count, target, place)
            for i in range(0 if inside else 3 * (right - left)):
                put(out, to + i, get(spare, i))
    put(work, ROWS, max(stop, get(work, ROWS)))


@kernel
def bounded(work: I64, corner: int, opposite: int) -> None:
    """Note a `Box`, or all of the picture; it ends at the picture's sides and is never empty."""
    for axis in range(2):
        shift, side = 16 - 16 * axis, get(work, HEIGHT + axis)
        stop = opposite >> shift & 0xFFFF
        stop = min(stop, side) if stop else side
        put(work, BOX + axis, min(corner >> shift & 0xFFFF, stop - 1))
        put(work, BOX + 2 + axis, stop)
    put(work, ROWS, get(work, BOX))


@kernel
def asked(start: int, stop: int, side: int, count: int) -> tuple[int, int]:
    """Which MCUs of an axis, `count` of so many pixels, a box from start to stop needs.

    A sample of chroma that stands for two pixels is mixed with its neighbours.
    """
    around = 2 if side == 16 else 0
    return max(start - around, 0) // side, min((stop - 1 + around) // side + 1, count)


@kernel
def all_rows(
    data: U8, work: I64, shorts: I16, coded: U8, planes: U8, room: int, pitch: int, end: int,
    out: U8,
) -> bool:  # fmt: skip
    """Decode the scan, whose bytes are coded[:end], row of MCUs by row of MCUs."""
    high, wide = 8 * get(work, COMPONENT + DOWN), 8 * get(work, COMPONENT + ACROSS)
    width, height = get(work, WIDTH), get(work, HEIGHT)
    across, down = (width + wide - 1) // wide, (height + high - 1) // high
    top, bottom = asked(get(work, BOX), get(work, BOX + 2), high, down)
    left, right = asked(get(work, BOX + 1), get(work, BOX + 3), wide, across)
    for row in range(down):
        start, stop = (left, right) if top <= row < bottom else (across, across)
        good = passed(data, work, shorts, coded, start, end)
        good = good and mcus(data, work, shorts, coded, planes, pitch, room, row, start, stop, end)
        if not good or not passed(data, work, shorts, coded, across - stop, end):
            return False
        # the last row above the next MCUs needs their chroma
        known = height if row == down - 1 else high * (row + 1) - (1 if high == 16 else 0)
        rows(work, shorts, planes, pitch, room, min(known, get(work, BOX + 2)), out)
    return bool((get(work, STREAM) * 8 - get(work, STREAM + 1) + 7) // 8 == end)


def picture(
    source: Pointer, size: int, target: Pointer, height: int, width: int, numbers: Pointer,
    corner: int, opposite: int,
) -> None:  # fmt: skip
    """A JPEG of `size` bytes to (height, width, 3) bytes of RGB; numbers[DONE] is 1 if it is done.

    Where it has other sides, 0 and 0 perhaps, nothing but its header is read. numbers: int64, see
    `memory`: the addresses of memory in which a file and a picture of these sides fit, too.
    corner, opposite: a `Box`; pixels outside it are arbitrary.
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
    bounded(work, corner, opposite)
    out = carray(target, height * width * 3)
    if all_rows(data, work, few, bytes_of_scan, memory, room, pitch, end, out):
        work[DONE] = 1


def compiled() -> str:
    """The LLVM code of `picture` for this machine, under the name NAME."""
    made = numba.cfunc(SIGNATURE, nogil=True, error_model="numpy")(picture)
    return str(made.inspect_llvm()).replace(made.native_name, NAME)
