"""Crops and blur of one image, (3, h, w) float32, C-contiguous: the loops of the `cpu` executor.

Both are separable. The blur goes along the rows first, and keeps a filtered row only as long as the
pass down the columns needs it. The crop goes down the columns first, for eight rows at a time. Then
it transposes them, so that the pass along the rows needs no shuffles: a vector is a column of eight
rows, and the same weight goes for all its lanes.
"""

import numpy as np
import numpy.typing as npt

from ..kernels import address, carray, claim, flat, kernel, release, split
from .cpu_vectors import AHEAD, LANES, QUAD, ROWS, block, bytes_as_floats, columns, square
from .cpu_weights import Image, axis, gaussian, radius_of, taps_of

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
f32 = np.float32


@kernel
def weighted_sum(
    target: Image, to: int, size: int, source: Image, places: I64, weights: Image
) -> None:
    """target[to + j] = sum over k of weights[k] * source[places[k] + j], j < size; flat arrays.

    The last block may overlap the one before it, so the target is no part of the source.
    """
    taps = places.size
    if size >= 7 * LANES:  # two are a row of 224
        for j in range(0, size, 7 * LANES):
            i = min(j, size - 7 * LANES)
            block(target, to + i, source, i, places, weights, taps, 7)
    elif size >= 2 * LANES:
        for j in range(0, size, 2 * LANES):
            i = min(j, size - 2 * LANES)
            block(target, to + i, source, i, places, weights, taps, 2)
    else:
        for j in range(size):
            target[to + j] = f32(0)
            for k in range(taps):
                target[to + j] += weights[k] * source[places[k] + j]


@kernel
def resize(
    canvas: U8, x: int, y: int, w: int, h: int, upside_down: bool, mirror: bool, cubic: bool,
    antialias: bool, image: Image,
) -> None:  # fmt: skip
    """Resize a box of the canvas to the image, [0, 255] to [0, 1], clamped.

    x, y: the upper left corner of the box; w, h: its sides.
    """
    _, out_h, out_w = image.shape
    taps_x, taps_y = taps_of(w, out_w, cubic, antialias), taps_of(h, out_h, cubic, antialias)
    m = (out_w + ROWS - 1) // ROWS * ROWS
    work = (taps_y + 2 * ROWS) * pitch_of(w) + 3 * ROWS * m
    total, numbers = work + m * taps_x + out_h * taps_y, 2 * m + out_h + taps_y
    here, there = claim(4 * total), claim(8 * numbers)
    memory, rest = split(carray(here, total, np.float32), work)
    flat_x, flat_y = split(rest, m * taps_x)
    first_y, rest_y = split(carray(there, numbers, np.int64), out_h)
    places, rest_x = split(rest_y, taps_y)
    first_x, starts = split(rest_x, m)
    weights_x = carray(address(flat_x), (out_w, taps_x))
    weights_y = carray(address(flat_y), (out_h, taps_y))
    axis(w, cubic, antialias, mirror, first_x[:out_w], weights_x)
    never = h < 0  # not False, or numba would compile `axis` for this constant, too
    axis(h, cubic, antialias, never, first_y, weights_y)
    for i in range(flat_y.size):
        flat_y[i] *= f32(1 / 255)
    for o in range(m):  # of those beyond the image, any that can be read
        starts[o] = 3 * ROWS * first_x[o] if o < out_w else 0
    resample(
        canvas, x, y, w, upside_down, first_y, weights_y, starts, flat_x, places, memory, image
    )
    release(here)
    release(there)


@kernel
def pitch_of(width: int) -> int:
    """Floats from row to row: an odd number of cache lines, or the rows would evict each other."""
    return max(3, (3 * width + LANES - 1) // LANES | 1) * LANES


@kernel
def resample(
    canvas: U8, x: int, y: int, width: int, upside_down: bool, first_y: I64, weights_y: Image,
    starts: I64, weights_x: Image, places: I64, memory: Image, image: Image,
) -> None:  # fmt: skip
    """`resize` with the weights of both axes: ROWS output rows at a time, a ring of source rows."""
    out_h, taps, pitch = image.shape[1], places.size, pitch_of(width)
    ring, rest = split(memory, taps * pitch)
    rows, rest_columns = split(rest, ROWS * pitch)
    turned, made = split(rest_columns, ROWS * pitch)
    source, stride = flat(canvas), 3 * canvas.shape[1]
    m, done = starts.size, 0
    taps_x = weights_x.size // m
    for o in range(0, out_h, ROWS):
        count = min(ROWS, out_h - o)
        for r in range(count):  # the lanes of rows beyond the image keep what they had
            first = first_y[o + r]
            for row in range(max(done, first), first + taps):
                start = (y + row) * stride + 3 * x
                load(ring, row % taps * pitch, source, start, 3 * width, AHEAD * stride)
            done = first + taps
            for k in range(taps):
                places[k] = (first + k) % taps * pitch
            weighted_sum(rows, r * pitch, pitch, ring, places, weights_y[o + r])
        for j in range(0, pitch, QUAD):
            columns(turned, ROWS * j, rows, j, pitch)
        for p in range(0, m, ROWS):
            square(made, p, m, turned, starts, weights_x, p, taps_x)
        finish(made, m, o, count, upside_down, image)


@kernel
def load(ring: Image, to: int, source: U8, at: int, size: int, ahead: int) -> None:
    """Bytes of a row as floats. The last vector overlaps: nothing beyond the row is read."""
    if size < LANES:
        for j in range(size):
            ring[to + j] = f32(source[at + j])
    else:
        bytes_as_floats(ring, to, source, at, size // LANES, ahead)
        bytes_as_floats(ring, to + size - LANES, source, at + size - LANES, 1, ahead)


@kernel
def finish(made: Image, m: int, o: int, count: int, upside_down: bool, image: Image) -> None:
    """Clamp `count` rows of three planes into the image, from row o on; m: floats of a made row."""
    _, out_h, out_w = image.shape
    pixels = flat(image)
    for c in range(3):
        for r in range(count):
            row = out_h - 1 - o - r if upside_down else o + r
            to, at = np.uint64((c * out_h + row) * out_w), np.uint64((c * ROWS + r) * m)
            for j in range(np.uint64(out_w)):
                pixels[to + j] = min(max(made[at + j], f32(0)), f32(1))


@kernel
def cut(canvas: U8, x: int, y: int, upside_down: bool, mirror: bool, image: Image) -> None:
    """Cut a box of the image's size out of the canvas, zero outside it."""
    _, height, width = image.shape
    for i in range(height):
        row = y + (height - 1 - i if upside_down else i)
        for j in range(width):
            column = x + (width - 1 - j if mirror else j)
            inside = 0 <= row < canvas.shape[0] and 0 <= column < canvas.shape[1]
            for c in range(3):
                image[c, i, j] = f32(canvas[row, column, c]) / f32(255) if inside else f32(0)


@kernel
def reflect(i: int, n: int) -> int:
    """The index that stands for i beyond a border; the border pixel itself is not repeated."""
    i = abs(i)
    return max(0, 2 * (n - 1) - i) if i >= n else i


@kernel
def blur(image: Image, sigma: float, size_y: int, size_x: int) -> None:
    """Gaussian weights of odd windows around each pixel, reflecting at the border, in place."""
    pad_y, pad_x = radius_of(sigma, size_y), radius_of(sigma, size_x)
    rows, columns, width = 2 * pad_y + 1, 2 * pad_x + 1, image.shape[2]
    total = rows + columns + width + 2 * pad_x
    here, there = claim(4 * (rows * width + total)), claim(8 * (rows + columns))
    ring, rest = split(carray(here, rows * width + total, np.float32), rows * width)
    weights_y, rest_x = split(rest, rows)
    weights_x, line = split(rest_x, columns)
    places, along = split(carray(there, rows + columns, np.int64), rows)
    gaussian(sigma, weights_y)
    gaussian(sigma, weights_x)
    for k in range(columns):
        along[k] = k
    spread_out(image, weights_y, weights_x, ring, line, places, along)
    release(here)
    release(there)


@kernel
def spread_out(
    image: Image, weights_y: Image, weights_x: Image, ring: Image, line: Image, places: I64,
    along: I64,
) -> None:  # fmt: skip
    """`blur` with the weights of both axes and its memory."""
    _, height, width = image.shape
    pad_y, pad_x, rows = weights_y.size // 2, weights_x.size // 2, weights_y.size
    pixels = flat(image)
    for c in range(3):
        done = 0
        for i in range(height):
            for row in range(done, min(i + pad_y + 1, height)):
                for j in range(pad_x):
                    line[j] = image[c, row, reflect(j - pad_x, width)]
                    line[pad_x + width + j] = image[c, row, reflect(width + j, width)]
                at = (c * height + row) * width
                for j in range(np.uint64(width)):
                    line[np.uint64(pad_x) + j] = pixels[np.uint64(at) + j]
                weighted_sum(ring, row % rows * width, width, line, along, weights_x)
                done = row + 1
            for k in range(rows):
                places[k] = reflect(i + k - pad_y, height) % rows * width
            at = (c * height + i) * width
            weighted_sum(pixels, at, width, ring, places, weights_y)
