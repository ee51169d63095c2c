"""Kernels of the triton executor: crop and blur. One program = a tile of one view.

A crop is resized along x into scratch memory (`across`), then along y (`down`); `triton_colour` has
the colours, and `blur` does one axis for views that drew it. Tiles are TALL x WIDE: weights of taps
are computed once per column or row, not per pixel.

A view's row of parameters holds COLUMNS of `triton_tables`, in that order, and its row of places
PLACES. Scratch memory is float16 or float32; all arithmetic is float32. The number of taps is each
box's own. Nothing is summed by atomics, so the same input gives the same bits.
"""

# ruff: noqa: RET505 - a constexpr branch needs its else: what follows a return is compiled too

import triton
import triton.language as tl

from .triton_colour import BLUR, COLUMNS, SIGMA, finish, unit

X, Y, W, H, HFLIP, VFLIP = (tl.constexpr(i) for i in range(6))
PLACES, CANVAS, BOTTOM, EDGE, SCRATCH = tl.constexpr(4), *(tl.constexpr(i) for i in range(4))
CUT = tl.constexpr(5.0)  # sigmas of a blur: 6e-7 of its weight lies beyond, 1.5e-4 of a level


@triton.jit
def weigh(t, RADIUS: tl.constexpr, ANTIALIAS: tl.constexpr):
    """Triangle (radius 1) or cubic (radius 2) at distance t, as in `planar_crop.kernel`."""
    if RADIUS == 1:
        return tl.maximum(1 - t, 0.0)
    else:
        a: tl.constexpr = -0.5 if ANTIALIAS else -0.75
        near = ((a + 2) * t - (a + 3)) * t * t + 1
        far = (((t - 5) * t + 8) * t - 4) * a
        return tl.where(t < 1, near, tl.where(t < 2, far, 0.0))


@triton.jit
def tap(at, first, centre, stretch, length, RADIUS: tl.constexpr, ANTIALIAS: tl.constexpr):
    """Where tap number `at` of each output pixel reads, from the start of the box; its weight."""
    i = first + at
    weight = weigh(tl.abs((i + 0.5 - centre) / stretch), RADIUS, ANTIALIAS)
    if ANTIALIAS:
        weight = tl.where((i >= 0) & (i < length), weight, 0.0)
    return tl.minimum(tl.maximum(i, 0.0), length - 1).to(tl.int32), weight


@triton.jit
def spread(at, length, side, RADIUS: tl.constexpr, ANTIALIAS: tl.constexpr):
    """Of output pixels `at` on an axis of `side`: first tap, centre, stretch and number of taps."""
    scale = length / side
    stretch = tl.maximum(scale, 1.0) if ANTIALIAS else scale * 0 + 1
    centre = (at.to(tl.float32) + 0.5) * scale
    first = tl.floor(centre - RADIUS * stretch + 0.5)
    return first, centre, stretch, tl.ceil(2 * RADIUS * stretch).to(tl.int32)


@triton.jit
def tile_of(HEIGHT, WIDTH: tl.constexpr, TALL: tl.constexpr, WIDE: tl.constexpr):
    """Rows, columns and which of them exist, of the tile that program_id(0) numbers."""
    wide: tl.constexpr = (WIDTH + WIDE - 1) // WIDE
    i = tl.program_id(0) // wide * TALL + tl.arange(0, TALL)
    j = tl.program_id(0) % wide * WIDE + tl.arange(0, WIDE)
    return i, j, (i < HEIGHT)[:, None] & (j < WIDTH)[None, :]


@triton.jit
def across(
    pixels, places, table, half,
    WIDTH: tl.constexpr, RADIUS: tl.constexpr, ANTIALIAS: tl.constexpr,
    TALL: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Every row of the box, resized along x and flipped: (3, box height, WIDTH) from SCRATCH on.

    Grid (tiles of the tallest box, R): programs beyond a view's own box do nothing.
    """
    view = tl.program_id(1)
    row, place = table + view * COLUMNS, places + view * PLACES
    h, w = tl.load(row + H).to(tl.int32), tl.load(row + W)
    i, j, ok = tile_of(h, WIDTH, TALL, WIDE)
    if tl.program_id(0) // tl.cdiv(WIDTH, WIDE) * TALL < h:
        x, y = tl.load(row + X).to(tl.int32), tl.load(row + Y).to(tl.int32)
        edge = tl.load(place + EDGE).to(tl.int32)
        source = tl.where(tl.load(row + HFLIP) > 0, WIDTH - 1 - j, j)
        first, centre, stretch, taps = spread(source, w, WIDTH, RADIUS, ANTIALIAS)
        line = pixels + tl.load(place + CANVAS) + 3 * ((y + i).to(tl.int64) * edge + x)
        r = tl.zeros([TALL, WIDE], tl.float32)
        g, b, total = r, r, centre * 0
        for n in range(taps):
            k, weight = tap(n, first, centre, stretch, w, RADIUS, ANTIALIAS)
            at = line[:, None] + (3 * k)[None, :]
            r += weight[None, :] * tl.load(at, mask=ok, other=0).to(tl.float32)
            g += weight[None, :] * tl.load(at + 1, mask=ok, other=0).to(tl.float32)
            b += weight[None, :] * tl.load(at + 2, mask=ok, other=0).to(tl.float32)
            total += weight
        level = (1 / (255 * total))[None, :]
        begin = tl.multiple_of(tl.load(place + SCRATCH), 16)
        to, plane = half + begin + i[:, None] * WIDTH + j[None, :], h * WIDTH
        tl.store(to, (r * level).to(half.dtype.element_ty), mask=ok)
        tl.store(to + plane, (g * level).to(half.dtype.element_ty), mask=ok)
        tl.store(to + 2 * plane, (b * level).to(half.dtype.element_ty), mask=ok)


@triton.jit
def keep(r, g, b, i, j, ok, view, sharp, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """Store a tile of the crop."""
    size: tl.constexpr = HEIGHT * WIDTH
    to = sharp + view.to(tl.int64) * (3 * size) + i[:, None] * WIDTH + j[None, :]
    tl.store(to, r.to(sharp.dtype.element_ty), mask=ok)
    tl.store(to + size, g.to(sharp.dtype.element_ty), mask=ok)
    tl.store(to + 2 * size, b.to(sharp.dtype.element_ty), mask=ok)


@triton.jit
def down(
    half, places, table, sharp,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, RADIUS: tl.constexpr, ANTIALIAS: tl.constexpr,
    TALL: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """What `across` left, resized along y and flipped: (R, 3, HEIGHT, WIDTH). Grid (tiles, R)."""
    view = tl.program_id(1)
    row, place = table + view * COLUMNS, places + view * PLACES
    h = tl.load(row + H)
    i, j, ok = tile_of(HEIGHT, WIDTH, TALL, WIDE)
    source = tl.where(tl.load(row + VFLIP) > 0, HEIGHT - 1 - i, i)
    first, centre, stretch, taps = spread(source, h, HEIGHT, RADIUS, ANTIALIAS)
    begin = tl.multiple_of(tl.load(place + SCRATCH), 16)
    plane = h.to(tl.int32) * WIDTH
    r = tl.zeros([TALL, WIDE], tl.float32)
    g, b, total = r, r, centre * 0
    for n in range(taps):
        k, weight = tap(n, first, centre, stretch, h, RADIUS, ANTIALIAS)
        at = half + begin + (k * WIDTH)[:, None] + j[None, :]
        r += weight[:, None] * tl.load(at, mask=ok, other=0).to(tl.float32)
        g += weight[:, None] * tl.load(at + plane, mask=ok, other=0).to(tl.float32)
        b += weight[:, None] * tl.load(at + 2 * plane, mask=ok, other=0).to(tl.float32)
        total += weight
    level = (1 / total)[:, None]
    r, g, b = unit(r * level), unit(g * level), unit(b * level)
    keep(r, g, b, i, j, ok, view, sharp, HEIGHT, WIDTH)


@triton.jit
def cut(
    pixels, places, table, sharp,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, TALL: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Pixels of the canvas as they are, zero outside, flipped. Grid (tiles, R)."""
    view = tl.program_id(1)
    row, place = table + view * COLUMNS, places + view * PLACES
    i, j, ok = tile_of(HEIGHT, WIDTH, TALL, WIDE)
    y = tl.load(row + Y).to(tl.int32) + tl.where(tl.load(row + VFLIP) > 0, HEIGHT - 1 - i, i)
    x = tl.load(row + X).to(tl.int32) + tl.where(tl.load(row + HFLIP) > 0, WIDTH - 1 - j, j)
    bottom, edge = tl.load(place + BOTTOM), tl.load(place + EDGE)
    inside = ok & ((y >= 0) & (y < bottom))[:, None] & ((x >= 0) & (x < edge))[None, :]
    at = pixels + tl.load(place + CANVAS) + (3 * y * edge)[:, None] + (3 * x)[None, :]
    r = tl.load(at, mask=inside, other=0).to(tl.float32) / 255
    g = tl.load(at + 1, mask=inside, other=0).to(tl.float32) / 255
    b = tl.load(at + 2, mask=inside, other=0).to(tl.float32) / 255
    keep(r, g, b, i, j, ok, view, sharp, HEIGHT, WIDTH)


@triton.jit
def mirror(at, SIDE: tl.constexpr):
    """Where a pixel outside of an axis is reflected to, the border not repeated."""
    at = tl.abs(at)
    return tl.where(at >= SIDE, 2 * (SIDE - 1) - at, at)


@triton.jit
def blur(
    source, table, out, mean_r, mean_g, mean_b, std_r, std_g, std_b,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, REACH: tl.constexpr, DOWN: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """One axis of the Gaussian over 2 REACH + 1 pixels; DOWN, the second, also finishes.

    Grid (tiles, 3 R). A view that did not draw it is left alone. Taps end at CUT sigmas.
    """
    plane = tl.program_id(1)
    row, c = table + plane // 3 * COLUMNS, plane % 3
    if tl.load(row + BLUR) > 0:
        at = tl.program_id(0) * TILE + tl.arange(0, TILE)
        ok = at < HEIGHT * WIDTH
        begin = source + plane.to(tl.int64) * (HEIGHT * WIDTH)
        i, j = at // WIDTH, at % WIDTH
        sigma = tl.load(row + SIGMA)
        x = tl.load(begin + at, mask=ok, other=0).to(tl.float32)
        total = sigma * 0 + 1
        for t in range(1, tl.minimum(REACH, tl.ceil(sigma * CUT).to(tl.int32)) + 1):
            weight = tl.exp(-0.5 * (t / sigma) * (t / sigma))
            if DOWN:
                before, after = mirror(i - t, HEIGHT) * WIDTH + j, mirror(i + t, HEIGHT) * WIDTH + j
            else:
                before, after = i * WIDTH + mirror(j - t, WIDTH), i * WIDTH + mirror(j + t, WIDTH)
            both = tl.load(begin + before, mask=ok, other=0).to(tl.float32)
            both += tl.load(begin + after, mask=ok, other=0).to(tl.float32)
            x += weight * both
            total += 2 * weight
        x = x / total
        if DOWN:
            mean = tl.where(c == 0, mean_r, tl.where(c == 1, mean_g, mean_b))
            std = tl.where(c == 0, std_r, tl.where(c == 1, std_g, std_b))
            x = finish(x, row, mean, std)
        to = out + plane.to(tl.int64) * (HEIGHT * WIDTH) + at
        tl.store(to, x.to(out.dtype.element_ty), mask=ok)
