"""Colour of the triton executor: jitter, grayscale, solarize and Normalize of a tile.

Tiles are r, g, b of any one shape, float32 in [0, 1]; `row` points to a view's row of parameters,
whose columns are those of `triton_tables`. What a view draws is scalar, so branches are uniform.
"""

import triton
import triton.language as tl

COLUMNS = tl.constexpr(20)
JITTER, FACTORS, ORDER = tl.constexpr(6), tl.constexpr(7), tl.constexpr(11)
GREY, BLUR, SIGMA, SOLARIZE, THRESHOLD = (tl.constexpr(i) for i in range(15, 20))
CONTRAST, SATURATION, HUE = tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)


@triton.jit
def luma(r, g, b):
    """The grey of RGB, with Kornia's weights."""
    return 0.299 * r + 0.587 * g + 0.114 * b


@triton.jit
def unit(x):
    """The values clamped to [0, 1]."""
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@triton.jit
def channel(most, chroma, sixths, n: tl.constexpr):
    """One channel of a hue given in sixths of a turn."""
    k = sixths + n
    k = k - 6 * tl.floor(k / 6)
    return most - chroma * unit(tl.minimum(k, 4 - k))


@triton.jit
def turn_hue(r, g, b, turns):
    """Hue in closed form, as in `planar.turn_hue`."""
    most, least = tl.maximum(tl.maximum(r, g), b), tl.minimum(tl.minimum(r, g), b)
    chroma = most - least
    share = tl.where(chroma == 0, 1.0, chroma)
    blue = tl.where(most == g, 2 + (b - r) / share, 4 + (r - g) / share)
    sixths = tl.where(most == r, (g - b) / share, blue) + 6 * turns
    return (
        channel(most, chroma, sixths, 5),
        channel(most, chroma, sixths, 3),
        channel(most, chroma, sixths, 1),
    )


@triton.jit
def adjust(r, g, b, factor, by, mean):
    """One factor of ColorJitter; the contrast turns about `mean`."""
    if factor == HUE:
        r, g, b = turn_hue(r, g, b, by)
    else:
        pivot = r * 0
        if factor == SATURATION:
            pivot = luma(r, g, b)
        if factor == CONTRAST:
            pivot = r * 0 + mean
        rest = pivot * (1 - by)
        r, g, b = unit(r * by + rest), unit(g * by + rest), unit(b * by + rest)
    return r, g, b


@triton.jit
def adjust_all(r, g, b, row, mean):
    """The four factors in the view's own order."""
    for place in range(4):
        factor = tl.load(row + ORDER + place).to(tl.int32)
        r, g, b = adjust(r, g, b, factor, tl.load(row + FACTORS + factor), mean)
    return r, g, b


@triton.jit
def needs_mean(row):
    """Whether the view's contrast is drawn and not neutral."""
    return (tl.load(row + JITTER) > 0) & (tl.load(row + FACTORS + CONTRAST) != 1)


@triton.jit
def grey_before_contrast(r, g, b, row):
    """The grey as the view's contrast finds it: after the factors that precede it."""
    done = 0
    for place in range(4):
        factor = tl.load(row + ORDER + place).to(tl.int32)
        if factor == CONTRAST:
            done = 1
        if done == 0:
            r, g, b = adjust(r, g, b, factor, tl.load(row + FACTORS + factor), 0.0)
    return luma(r, g, b)


@triton.jit
def finish(x, row, mean, std):
    """Solarize and normalise."""
    if tl.load(row + SOLARIZE) > 0:
        x = tl.where(x >= tl.load(row + THRESHOLD), 1 - x, x)
    return (x - mean) / std


@triton.jit
def grey_sums(sharp, table, partial, SIZE: tl.constexpr, TILE: tl.constexpr):
    """The sums of grey of tiles of cropped views, where the contrast turns about the mean.

    Grid (tiles, R). partial: (R, tiles) float32. It reads again what `down` has just stored: within
    `down` the same sums are wrong on an H200 (Triton 3.6), by up to a level of the mean, where a
    saturation that clamps and a hue come first. The interpreter gets both right.
    """
    view = tl.program_id(1).to(tl.int64)
    row = table + view * COLUMNS
    if needs_mean(row):
        at = tl.program_id(0) * TILE + tl.arange(0, TILE)
        ok = at < SIZE
        begin = sharp + view * (3 * SIZE) + at
        r = tl.load(begin, mask=ok, other=0).to(tl.float32)
        g = tl.load(begin + SIZE, mask=ok, other=0).to(tl.float32)
        b = tl.load(begin + 2 * SIZE, mask=ok, other=0).to(tl.float32)
        grey = tl.where(ok, grey_before_contrast(r, g, b, row), 0.0)
        tl.store(partial + view * tl.num_programs(0) + tl.program_id(0), tl.sum(grey, 0))


@triton.jit
def colour(
    sharp, table, partial, out, mean_r, mean_g, mean_b, std_r, std_g, std_b,
    SIZE: tl.constexpr, PARTS: tl.constexpr, PARTS_POWER: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Jitter and grey of cropped views; and the rest, unless a blur comes between.

    Grid (tiles, R). A view of SIZE pixels goes from `sharp`, (R, 3, h, w), to `out`, or back to
    `sharp` where it is to be blurred. partial: (R, PARTS) float32, the sums of grey of its tiles.
    """
    view = tl.program_id(1).to(tl.int64)
    row = table + view * COLUMNS
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    ok = at < SIZE
    begin = view * (3 * SIZE)
    r = tl.load(sharp + begin + at, mask=ok, other=0).to(tl.float32)
    g = tl.load(sharp + begin + SIZE + at, mask=ok, other=0).to(tl.float32)
    b = tl.load(sharp + begin + 2 * SIZE + at, mask=ok, other=0).to(tl.float32)
    if tl.load(row + JITTER) > 0:
        mean = 0.0
        if needs_mean(row):
            k = tl.arange(0, PARTS_POWER)
            parts = tl.load(partial + view * PARTS + k, mask=k < PARTS, other=0.0)
            mean = tl.sum(parts, 0) / SIZE
        r, g, b = adjust_all(r, g, b, row, mean)
    if tl.load(row + GREY) > 0:
        r = luma(r, g, b)
        g, b = r, r
    if tl.load(row + BLUR) > 0:
        tl.store(sharp + begin + at, r.to(sharp.dtype.element_ty), mask=ok)
        tl.store(sharp + begin + SIZE + at, g.to(sharp.dtype.element_ty), mask=ok)
        tl.store(sharp + begin + 2 * SIZE + at, b.to(sharp.dtype.element_ty), mask=ok)
    else:
        to = out + begin + at
        tl.store(to, finish(r, row, mean_r, std_r).to(out.dtype.element_ty), mask=ok)
        tl.store(to + SIZE, finish(g, row, mean_g, std_g).to(out.dtype.element_ty), mask=ok)
        tl.store(to + 2 * SIZE, finish(b, row, mean_b, std_b).to(out.dtype.element_ty), mask=ok)
