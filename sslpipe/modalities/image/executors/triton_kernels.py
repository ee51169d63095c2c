"""Kernels of the triton executor. One program = a tile of one view; what a view draws is scalar,
so its branches are uniform: an op that is off, or another factor's place, costs nothing.

A view's row of parameters holds COLUMNS of `triton`, in that order. The number of taps is each
box's own. Nothing is summed by atomics, so the same input gives the same bits.
"""

# ruff: noqa: RET505 - a constexpr branch needs its else: what follows a return is compiled too

import triton
import triton.language as tl

COLUMNS = tl.constexpr(20)
X, Y, W, H, HFLIP, VFLIP = (tl.constexpr(i) for i in range(6))
JITTER, FACTORS, ORDER = tl.constexpr(6), tl.constexpr(7), tl.constexpr(11)
GREY, BLUR, SIGMA, SOLARIZE, THRESHOLD = (tl.constexpr(i) for i in range(15, 20))
CONTRAST, SATURATION, HUE = tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)


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
    return tl.minimum(tl.maximum(i, 0.0), length - 1), weight


@triton.jit
def load(pixels, base, stride, y, x, ok):
    """Levels of r, g, b at row y and column x of a canvas; 0 where not ok."""
    at = pixels + base + 3 * (y.to(tl.int64) * stride + x.to(tl.int64))
    r = tl.load(at, mask=ok, other=0).to(tl.float32)
    g = tl.load(at + 1, mask=ok, other=0).to(tl.float32)
    b = tl.load(at + 2, mask=ok, other=0).to(tl.float32)
    return r, g, b


@triton.jit
def resize(
    pixels, base, stride, row, i, j,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, RADIUS: tl.constexpr, ANTIALIAS: tl.constexpr,
):  # fmt: skip
    """Output pixels (i, j) of the resized box, in [0, 1]."""
    x, y = tl.load(row + X), tl.load(row + Y)
    w, h = tl.load(row + W), tl.load(row + H)
    scale_y, scale_x = h / HEIGHT, w / WIDTH
    stretch_y = tl.maximum(scale_y, 1.0) if ANTIALIAS else scale_y * 0 + 1
    stretch_x = tl.maximum(scale_x, 1.0) if ANTIALIAS else scale_x * 0 + 1
    centre_y, centre_x = (i + 0.5) * scale_y, (j + 0.5) * scale_x
    first_y = tl.floor(centre_y - RADIUS * stretch_y + 0.5)
    first_x = tl.floor(centre_x - RADIUS * stretch_x + 0.5)
    r, g, b, total = i * 0.0, i * 0.0, i * 0.0, i * 0.0
    for down in range(tl.ceil(2 * RADIUS * stretch_y).to(tl.int32)):
        at_y, weight_y = tap(down, first_y, centre_y, stretch_y, h, RADIUS, ANTIALIAS)
        for right in range(tl.ceil(2 * RADIUS * stretch_x).to(tl.int32)):
            at_x, weight_x = tap(right, first_x, centre_x, stretch_x, w, RADIUS, ANTIALIAS)
            weight = weight_y * weight_x
            red, green, blue = load(pixels, base, stride, y + at_y, x + at_x, weight != 0)
            r += weight * red
            g += weight * green
            b += weight * blue
            total += weight
    scale = 255 * total
    r = tl.minimum(tl.maximum(r / scale, 0.0), 1.0)
    g = tl.minimum(tl.maximum(g / scale, 0.0), 1.0)
    b = tl.minimum(tl.maximum(b / scale, 0.0), 1.0)
    return r, g, b


@triton.jit
def crop(
    pixels, offsets, sides, view, row, at,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, RADIUS: tl.constexpr, ANTIALIAS: tl.constexpr,
):  # fmt: skip
    """Output pixels number `at` of the crop and its flips; RADIUS 0 cuts and pads with zeros."""
    base = tl.load(offsets + view)
    bottom, edge = tl.load(sides + 2 * view), tl.load(sides + 2 * view + 1)
    at = tl.minimum(at, HEIGHT * WIDTH - 1)  # the last tile is not full
    i, j = (at // WIDTH).to(tl.float32), (at % WIDTH).to(tl.float32)
    i = tl.where(tl.load(row + VFLIP) > 0, HEIGHT - 1 - i, i)
    j = tl.where(tl.load(row + HFLIP) > 0, WIDTH - 1 - j, j)
    if RADIUS == 0:
        y, x = tl.load(row + Y) + i, tl.load(row + X) + j
        inside = (y >= 0) & (y < bottom) & (x >= 0) & (x < edge)
        r, g, b = load(pixels, base, edge, y, x, inside)
        return r / 255, g / 255, b / 255
    else:
        return resize(pixels, base, edge, row, i, j, HEIGHT, WIDTH, RADIUS, ANTIALIAS)


@triton.jit
def luma(r, g, b):
    """The grey of RGB, with Kornia's weights."""
    return 0.299 * r + 0.587 * g + 0.114 * b


@triton.jit
def channel(most, chroma, sixths, n: tl.constexpr):
    """One channel of a hue given in sixths of a turn."""
    k = sixths + n
    k = k - 6 * tl.floor(k / 6)
    return most - chroma * tl.minimum(tl.maximum(tl.minimum(k, 4 - k), 0.0), 1.0)


@triton.jit
def turn_hue(r, g, b, turns):
    """Hue in closed form, as in `planar.turn_hue`."""
    most, least = tl.maximum(tl.maximum(r, g), b), tl.minimum(tl.minimum(r, g), b)
    chroma = most - least
    unit = tl.where(chroma == 0, 1.0, chroma)
    blue = tl.where(most == g, 2 + (b - r) / unit, 4 + (r - g) / unit)
    sixths = tl.where(most == r, (g - b) / unit, blue) + 6 * turns
    return (
        channel(most, chroma, sixths, 5),
        channel(most, chroma, sixths, 3),
        channel(most, chroma, sixths, 1),
    )


@triton.jit
def adjust(r, g, b, factor, by, mean):
    """One factor of ColorJitter on a tile."""
    if factor == HUE:
        r, g, b = turn_hue(r, g, b, by)
    else:
        pivot = r * 0
        if factor == SATURATION:
            pivot = luma(r, g, b)
        if factor == CONTRAST:
            pivot = r * 0 + mean
        rest = pivot * (1 - by)
        r = tl.minimum(tl.maximum(r * by + rest, 0.0), 1.0)
        g = tl.minimum(tl.maximum(g * by + rest, 0.0), 1.0)
        b = tl.minimum(tl.maximum(b * by + rest, 0.0), 1.0)
    return r, g, b


@triton.jit
def stats(
    pixels, offsets, sides, table, means,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, RADIUS: tl.constexpr, ANTIALIAS: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """The mean grey of each view as its contrast finds it, (R,); one program per view."""
    view = tl.program_id(0)
    row = table + view * COLUMNS
    if (tl.load(row + JITTER) > 0) & (tl.load(row + FACTORS + CONTRAST) != 1):
        grey = tl.zeros([TILE], tl.float32)
        for start in range(0, HEIGHT * WIDTH, TILE):
            at = start + tl.arange(0, TILE)
            r, g, b = crop(
                pixels, offsets, sides, view, row, at, HEIGHT, WIDTH, RADIUS, ANTIALIAS
            )  # fmt: skip
            done = 0
            for place in range(4):
                factor = tl.load(row + ORDER + place).to(tl.int32)
                if factor == CONTRAST:
                    done = 1
                if done == 0:
                    r, g, b = adjust(r, g, b, factor, tl.load(row + FACTORS + factor), 0.0)
            grey += tl.where(at < HEIGHT * WIDTH, luma(r, g, b), 0.0)
        tl.store(means + view, tl.sum(grey, 0) / (HEIGHT * WIDTH))


@triton.jit
def finish(x, row, mean, std):
    """Solarize and normalise."""
    if tl.load(row + SOLARIZE) > 0:
        x = tl.where(x >= tl.load(row + THRESHOLD), 1 - x, x)
    return (x - mean) / std


@triton.jit
def colour(
    pixels, offsets, sides, table, means, out, mean_r, mean_g, mean_b, std_r, std_g, std_b,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, RADIUS: tl.constexpr, ANTIALIAS: tl.constexpr,
    FINISH: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Crop, flips, jitter and grey; and the rest, unless a blur comes between. Grid (R, tiles)."""
    view = tl.program_id(0)
    row = table + view * COLUMNS
    at = tl.program_id(1) * TILE + tl.arange(0, TILE)
    r, g, b = crop(
        pixels, offsets, sides, view, row, at, HEIGHT, WIDTH, RADIUS, ANTIALIAS
    )  # fmt: skip
    if tl.load(row + JITTER) > 0:
        mean = tl.load(means + view)
        for place in range(4):
            factor = tl.load(row + ORDER + place).to(tl.int32)
            r, g, b = adjust(r, g, b, factor, tl.load(row + FACTORS + factor), mean)
    if tl.load(row + GREY) > 0:
        r = luma(r, g, b)
        g, b = r, r
    if FINISH:
        r = finish(r, row, mean_r, std_r)
        g = finish(g, row, mean_g, std_g)
        b = finish(b, row, mean_b, std_b)
    pixel = out + view.to(tl.int64) * (3 * HEIGHT * WIDTH) + at
    ok = at < HEIGHT * WIDTH
    tl.store(pixel, r.to(out.dtype.element_ty), mask=ok)
    tl.store(pixel + HEIGHT * WIDTH, g.to(out.dtype.element_ty), mask=ok)
    tl.store(pixel + 2 * HEIGHT * WIDTH, b.to(out.dtype.element_ty), mask=ok)


@triton.jit
def blur(
    source, table, out, mean_r, mean_g, mean_b, std_r, std_g, std_b,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, REACH: tl.constexpr, DOWN: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """One axis of the Gaussian over 2 REACH + 1 pixels; DOWN, the second, also finishes.

    Grid (3 R, tiles). A view that is not blurred is copied.
    """
    plane = tl.program_id(0)
    row, c = table + plane // 3 * COLUMNS, plane % 3
    at = tl.program_id(1) * TILE + tl.arange(0, TILE)
    ok = at < HEIGHT * WIDTH
    begin = plane.to(tl.int64) * (HEIGHT * WIDTH)
    i, j = at // WIDTH, at % WIDTH
    if tl.load(row + BLUR) > 0:
        sigma = tl.load(row + SIGMA)
        x, total = at * 0.0, sigma * 0
        for t in range(-REACH, REACH + 1):
            weight = tl.exp(-0.5 * (t / sigma) * (t / sigma))
            if DOWN:
                k = tl.abs(i + t)
                read = tl.where(k >= HEIGHT, 2 * (HEIGHT - 1) - k, k) * WIDTH + j
            else:
                k = tl.abs(j + t)
                read = i * WIDTH + tl.where(k >= WIDTH, 2 * (WIDTH - 1) - k, k)
            x += weight * tl.load(source + begin + read, mask=ok, other=0.0)
            total += weight
        x = x / total
    else:
        x = tl.load(source + begin + at, mask=ok, other=0.0)
    if DOWN:
        mean = tl.where(c == 0, mean_r, tl.where(c == 1, mean_g, mean_b))
        std = tl.where(c == 0, std_r, tl.where(c == 1, std_g, std_b))
        x = finish(x, row, mean, std)
    tl.store(out + begin + at, x.to(out.dtype.element_ty), mask=ok)
