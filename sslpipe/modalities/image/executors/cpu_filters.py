"""Crops and blur of one image, (3, h, w) float32, C-contiguous: the loops of the `cpu` executor.

Both are separable, and go along the rows first. A filtered row is kept only as long as the pass
down the columns needs it: nothing but the image itself is ever larger than the L1 cache.
"""

import numpy as np
import numpy.typing as npt

from .cpu_memory import address, carray, claim, flat, release, split
from .cpu_vectors import FIVE, LANES, QUAD, block, quad
from .cpu_weights import Image, axis, gaussian, kernel, radius_of, taps_of

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
def in_groups(first: I64, weights: Image, starts: I64, spread: Image) -> None:
    """Starts and weights as `quad` takes them; outputs that fill the last quad weigh 0."""
    taps = weights.shape[1]
    groups = groups_of(taps)
    starts[:] = 0
    spread[:] = f32(0)
    for o in range(first.size):
        starts[o] = 3 * first[o]
        for k in range(taps):
            at = (o * groups + k // FIVE) * LANES + 3 * (k % FIVE)
            spread[at] = spread[at + 1] = spread[at + 2] = weights[o, k]


@kernel
def groups_of(taps: int) -> int:
    """Vectors of five pixels that hold so many taps."""
    return (taps + FIVE - 1) // FIVE


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
    groups, m = groups_of(taps_x), (out_w + QUAD - 1) // QUAD * QUAD
    length = 3 * (w + FIVE * groups) + LANES  # of a line, in bytes
    here = claim(8 * (out_w + out_h + m))
    first_x, rest = split(carray(here, out_w + out_h + m, np.int64), out_w)
    first_y, starts = split(rest, out_h)
    total = out_w * taps_x + out_h * taps_y + m * groups * LANES
    there, line = claim(4 * total), claim(length)
    flat_x, rest_x = split(carray(there, total, np.float32), out_w * taps_x)
    flat_y, spread = split(rest_x, out_h * taps_y)
    weights_x = carray(address(flat_x), (out_w, taps_x))
    weights_y = carray(address(flat_y), (out_h, taps_y))
    axis(w, cubic, antialias, mirror, first_x, weights_x)
    never = h < 0  # not False, or numba would compile `axis` for this constant, too
    axis(h, cubic, antialias, never, first_y, weights_y)
    in_groups(first_x, weights_x, starts, spread)
    pixels = carray(line, length, np.uint8)
    resample(canvas, x, y, upside_down, first_y, weights_y, starts, spread, pixels, image)
    release(here)
    release(there)
    release(line)


@kernel
def resample(
    canvas: U8, x: int, y: int, upside_down: bool, first_y: I64, weights_y: Image, starts: I64,
    spread: Image, line: U8, image: Image,
) -> None:  # fmt: skip
    """`resize` with the weights of both axes: along the rows first, a ring of filtered rows."""
    _, out_h, out_w = image.shape
    taps, m = weights_y.shape[1], starts.size
    groups = spread.size // (m * LANES)
    width = (line.size - LANES) // 3 - FIVE * groups
    here, there = claim(4 * taps * 3 * m), claim(8 * taps)
    ring, places = carray(here, taps * 3 * m, np.float32), carray(there, taps, np.int64)
    line[:] = 0
    pixels, source, stride = flat(image), flat(canvas), 3 * canvas.shape[1]
    done = 0
    for o in range(out_h):
        for row in range(max(done, first_y[o]), first_y[o] + taps):
            start = np.uint64((y + row) * stride + 3 * x)
            for j in range(np.uint64(3 * width)):
                line[j] = source[start + j]
            for p in range(0, m, QUAD):
                quad(ring, row % taps * 3 * m + p, m, line, starts, spread, p, groups)
        done = first_y[o] + taps
        to = out_h - 1 - o if upside_down else o
        for c in range(3):
            for k in range(taps):
                places[k] = ((first_y[o] + k) % taps * 3 + c) * m
            at = (c * out_h + to) * out_w
            weighted_sum(pixels, at, out_w, ring, places, weights_y[o])
            for j in range(np.uint64(out_w)):
                i = np.uint64(at) + j
                pixels[i] = min(max(pixels[i] * f32(1 / 255), f32(0)), f32(1))
    release(here)
    release(there)


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
