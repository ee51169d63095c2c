"""Kernels that make canvases of decoded images of many sizes: bicubic, antialiased, in float32.

An image's row of places holds PLACES numbers: the address of its bytes, how far apart its channels,
rows and columns lie, its height and width, those of its canvas, and where its canvas and its
scratch memory begin.
"""

import triton
import triton.language as tl

from .triton_kernels import spread, tap

PLACES = tl.constexpr(10)
ADDRESS, CHANNEL, LINE, COLUMN = (tl.constexpr(i) for i in range(4))
HEIGHT, WIDTH, TALLNESS, WIDTHNESS, CANVAS, SCRATCH = (tl.constexpr(i) for i in range(4, 10))


@triton.jit
def shrink_across(places, half, TALL: tl.constexpr, WIDE: tl.constexpr):
    """Every row of an image along x: (3, height, canvas width) levels. Grid (columns, rows, B)."""
    place = places + tl.program_id(2) * PLACES
    height, width = tl.load(place + HEIGHT).to(tl.int32), tl.load(place + WIDTH).to(tl.int32)
    side = tl.load(place + WIDTHNESS).to(tl.int32)
    top, left = tl.program_id(1) * TALL, tl.program_id(0) * WIDE
    if (top < height) & (left < side):
        i, j = top + tl.arange(0, TALL), left + tl.arange(0, WIDE)
        ok = (i < height)[:, None] & (j < side)[None, :]
        length = width.to(tl.float32)
        first, centre, stretch, taps = spread(tl.minimum(j, side - 1), length, side, 2, True)
        channel, column = tl.load(place + CHANNEL), tl.load(place + COLUMN)
        source = tl.load(place + ADDRESS).to(tl.pointer_type(tl.uint8))
        line = source + i * tl.load(place + LINE)
        r = tl.zeros([TALL, WIDE], tl.float32)
        g, b, total = r, r, centre * 0
        for n in range(taps):
            k, weight = tap(n, first, centre, stretch, length, 2, True)
            at = line[:, None] + (k * column)[None, :]
            r += weight[None, :] * tl.load(at, mask=ok, other=0).to(tl.float32)
            g += weight[None, :] * tl.load(at + channel, mask=ok, other=0).to(tl.float32)
            b += weight[None, :] * tl.load(at + 2 * channel, mask=ok, other=0).to(tl.float32)
            total += weight
        to = half + tl.load(place + SCRATCH) + i[:, None] * side + j[None, :]
        plane = height * side
        tl.store(to, r / total[None, :], mask=ok)
        tl.store(to + plane, g / total[None, :], mask=ok)
        tl.store(to + 2 * plane, b / total[None, :], mask=ok)


@triton.jit
def level(x):
    """The nearest level of 8 bits."""
    return tl.minimum(tl.maximum(tl.floor(x + 0.5), 0.0), 255.0).to(tl.uint8)


@triton.jit
def shrink_down(places, half, out, TALL: tl.constexpr, WIDE: tl.constexpr):
    """What `shrink_across` left, along y: (canvas height, canvas width, 3). Grid as there."""
    place = places + tl.program_id(2) * PLACES
    height, side = tl.load(place + HEIGHT).to(tl.int32), tl.load(place + WIDTHNESS).to(tl.int32)
    bottom = tl.load(place + TALLNESS).to(tl.int32)
    top, left = tl.program_id(1) * TALL, tl.program_id(0) * WIDE
    if (top < bottom) & (left < side):
        i, j = top + tl.arange(0, TALL), left + tl.arange(0, WIDE)
        ok = (i < bottom)[:, None] & (j < side)[None, :]
        length = height.to(tl.float32)
        first, centre, stretch, taps = spread(tl.minimum(i, bottom - 1), length, bottom, 2, True)
        begin, plane = half + tl.load(place + SCRATCH), height * side
        r = tl.zeros([TALL, WIDE], tl.float32)
        g, b, total = r, r, centre * 0
        for n in range(taps):
            k, weight = tap(n, first, centre, stretch, length, 2, True)
            at = begin + (k * side)[:, None] + j[None, :]
            r += weight[:, None] * tl.load(at, mask=ok, other=0)
            g += weight[:, None] * tl.load(at + plane, mask=ok, other=0)
            b += weight[:, None] * tl.load(at + 2 * plane, mask=ok, other=0)
            total += weight
        to = out + tl.load(place + CANVAS) + 3 * (i[:, None] * side + j[None, :])
        tl.store(to, level(r / total[:, None]), mask=ok)
        tl.store(to + 1, level(g / total[:, None]), mask=ok)
        tl.store(to + 2, level(b / total[:, None]), mask=ok)


@triton.jit
def extremes(places, out, TILE: tl.constexpr):
    """The least and the highest level of each image, (B, 2) int32. Grid (B,)."""
    image = tl.program_id(0)
    place = places + image * PLACES
    source = tl.load(place + ADDRESS).to(tl.pointer_type(tl.uint8))
    size = (3 * tl.load(place + HEIGHT) * tl.load(place + WIDTH)).to(tl.int32)
    low, high = tl.full([TILE], 255, tl.int32), tl.zeros([TILE], tl.int32)
    for start in range(0, size, TILE):
        at = start + tl.arange(0, TILE)
        x = tl.load(source + at, mask=at < size, other=0).to(tl.int32)
        low = tl.minimum(low, tl.where(at < size, x, 255))
        high = tl.maximum(high, x)
    tl.store(out + 2 * image, tl.min(low, 0))
    tl.store(out + 2 * image + 1, tl.max(high, 0))
