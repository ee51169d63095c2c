"""Variants of the triton executor's crop and blur by small matrix products, for gpu_kernels.py."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl
from torch import Tensor

from sslpipe.modalities.image import ops
from sslpipe.modalities.image.draws import Policy
from sslpipe.modalities.image.executors import triton as executor
from sslpipe.modalities.image.executors import triton_colour, triton_kernels, triton_tables
from sslpipe.modalities.image.executors.planar_crop import RADIUS
from sslpipe.modalities.image.executors.triton_colour import BLUR, COLUMNS, SIGMA, finish, unit
from sslpipe.modalities.image.executors.triton_kernels import (
    CANVAS,
    CUT,
    EDGE,
    HFLIP,
    PLACES,
    SCRATCH,
    VFLIP,
    H,
    W,
    X,
    Y,
    keep,
    mirror,
    spread,
    tile_of,
    weigh,
)

F32 = npt.NDArray[np.float32]


@triton.jit
def reach_of(first, taps, length, ANTIALIAS: tl.constexpr):
    """Source pixels that a tile reads: from, to (not among them)."""
    begin, end = tl.min(first, 0).to(tl.int32), tl.max(first, 0).to(tl.int32) + taps
    if ANTIALIAS:
        begin, end = tl.maximum(begin, 0), tl.minimum(end, length)
    return begin, end


@triton.jit
def weights(k, centre, inverse, length, RADIUS: tl.constexpr, ANTIALIAS: tl.constexpr):
    """What source pixels k give to outputs about `centre`, broadcast against each other."""
    found = weigh(tl.abs((k + 0.5 - centre) * inverse), RADIUS, ANTIALIAS)
    if ANTIALIAS:
        found = tl.where((k >= 0) & (k < length), found, 0.0)
    return found


@triton.jit
def columns(
    r, g, b, total, line, ok, begin, end, centre, inverse, w,
    T: tl.constexpr, RADIUS: tl.constexpr, ANTIALIAS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Rows of the canvas resized along x, summed into r, g, b."""
    for start in range(begin, end, CHUNK):
        k = start + tl.arange(0, CHUNK)
        weight = weights(k[:, None], centre[None, :], inverse, w, RADIUS, ANTIALIAS).to(T)
        total += tl.sum(weight.to(tl.float32), 0)
        at = line[:, None] + (3 * tl.minimum(tl.maximum(k, 0), w - 1))[None, :]
        inside = ok[:, None] & (k < end)[None, :]
        r = tl.dot(tl.load(at, mask=inside, other=0).to(T), weight, r, input_precision="ieee")
        g = tl.dot(tl.load(at + 1, mask=inside, other=0).to(T), weight, g, input_precision="ieee")
        b = tl.dot(tl.load(at + 2, mask=inside, other=0).to(T), weight, b, input_precision="ieee")
    return r, g, b, total


@triton.jit
def across(
    pixels, places, table, half,
    WIDTH: tl.constexpr, RADIUS: tl.constexpr, ANTIALIAS: tl.constexpr,
    TALL: tl.constexpr, WIDE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    view = tl.program_id(1)
    row, place = table + view * COLUMNS, places + view * PLACES
    h = tl.load(row + H).to(tl.int32)
    i, j, ok = tile_of(h, WIDTH, TALL, WIDE)
    if tl.program_id(0) // tl.cdiv(WIDTH, WIDE) * TALL < h:
        x, y = tl.load(row + X).to(tl.int32), tl.load(row + Y).to(tl.int32)
        w = tl.load(row + W).to(tl.int32)
        edge = tl.load(place + EDGE).to(tl.int32)
        source = tl.where(tl.load(row + HFLIP) > 0, WIDTH - 1 - j, j)
        source = tl.minimum(tl.maximum(source, 0), WIDTH - 1)
        first, centre, stretch, taps = spread(source, tl.load(row + W), WIDTH, RADIUS, ANTIALIAS)
        begin, end = reach_of(first, taps, w, ANTIALIAS)
        line = pixels + tl.load(place + CANVAS) + 3 * ((y + i).to(tl.int64) * edge + x)
        r = tl.zeros([TALL, WIDE], tl.float32)
        r, g, b, total = columns(
            r, r, r, centre * 0, line, i < h, begin, end, centre, 1 / stretch, w,
            half.dtype.element_ty, RADIUS, ANTIALIAS, CHUNK,
        )  # fmt: skip
        level = (1 / (255 * total))[None, :]
        start = tl.multiple_of(tl.load(place + SCRATCH), 16)
        to, plane = half + start + i[:, None] * WIDTH + j[None, :], h * WIDTH
        tl.store(to, (r * level).to(half.dtype.element_ty), mask=ok)
        tl.store(to + plane, (g * level).to(half.dtype.element_ty), mask=ok)
        tl.store(to + 2 * plane, (b * level).to(half.dtype.element_ty), mask=ok)


@triton.jit
def down(
    half, places, table, sharp, partial,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, RADIUS: tl.constexpr, ANTIALIAS: tl.constexpr,
    MEANS: tl.constexpr, TALL: tl.constexpr, WIDE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    view = tl.program_id(1)
    row, place = table + view * COLUMNS, places + view * PLACES
    h = tl.load(row + H).to(tl.int32)
    i, j, ok = tile_of(HEIGHT, WIDTH, TALL, WIDE)
    source = tl.where(tl.load(row + VFLIP) > 0, HEIGHT - 1 - i, i)
    source = tl.minimum(tl.maximum(source, 0), HEIGHT - 1)
    first, centre, stretch, taps = spread(source, tl.load(row + H), HEIGHT, RADIUS, ANTIALIAS)
    begin, end = reach_of(first, taps, h, ANTIALIAS)
    scratch = tl.multiple_of(tl.load(place + SCRATCH), 16)
    plane, inverse = h * WIDTH, 1 / stretch
    T: tl.constexpr = half.dtype.element_ty
    r = tl.zeros([TALL, WIDE], tl.float32)
    g, b, total = r, r, centre * 0
    for start in range(begin, end, CHUNK):
        k = start + tl.arange(0, CHUNK)
        weight = weights(k[None, :], centre[:, None], inverse, h, RADIUS, ANTIALIAS).to(T)
        total += tl.sum(weight.to(tl.float32), 1)
        at = half + scratch + (tl.minimum(tl.maximum(k, 0), h - 1) * WIDTH)[:, None] + j[None, :]
        inside = (k < end)[:, None] & (j < WIDTH)[None, :]
        r = tl.dot(weight, tl.load(at, mask=inside, other=0), r, input_precision="ieee")
        g = tl.dot(weight, tl.load(at + plane, mask=inside, other=0), g, input_precision="ieee")
        b = tl.dot(weight, tl.load(at + 2 * plane, mask=inside, other=0), b, input_precision="ieee")
    level = (1 / total)[:, None]
    r, g, b = unit(r * level), unit(g * level), unit(b * level)
    keep(r, g, b, i, j, ok, view, row, sharp, partial, HEIGHT, WIDTH, MEANS)


@triton.jit
def fused_crop(
    pixels, places, table, sharp, partial,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, RADIUS: tl.constexpr, ANTIALIAS: tl.constexpr,
    MEANS: tl.constexpr, TALL: tl.constexpr, WIDE: tl.constexpr, CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    view = tl.program_id(1)
    row, place = table + view * COLUMNS, places + view * PLACES
    x, y = tl.load(row + X).to(tl.int32), tl.load(row + Y).to(tl.int32)
    w, h = tl.load(row + W).to(tl.int32), tl.load(row + H).to(tl.int32)
    edge = tl.load(place + EDGE).to(tl.int32)
    i, j, ok = tile_of(HEIGHT, WIDTH, TALL, WIDE)
    low = tl.where(tl.load(row + VFLIP) > 0, HEIGHT - 1 - i, i)
    low = tl.minimum(tl.maximum(low, 0), HEIGHT - 1)
    right = tl.where(tl.load(row + HFLIP) > 0, WIDTH - 1 - j, j)
    right = tl.minimum(tl.maximum(right, 0), WIDTH - 1)
    first, centre, stretch, taps = spread(right, tl.load(row + W), WIDTH, RADIUS, ANTIALIAS)
    begin, end = reach_of(first, taps, w, ANTIALIAS)
    top, middle, tall, more = spread(low, tl.load(row + H), HEIGHT, RADIUS, ANTIALIAS)
    above, below = reach_of(top, more, h, ANTIALIAS)
    base = pixels + tl.load(place + CANVAS)
    T: tl.constexpr = sharp.dtype.element_ty
    r = tl.zeros([TALL, WIDE], tl.float32)
    g, b, total = r, r, middle * 0
    for start in range(above, below, ROWS):
        k = start + tl.arange(0, ROWS)
        weight = weights(k[None, :], middle[:, None], 1 / tall, h, RADIUS, ANTIALIAS).to(T)
        total += tl.sum(weight.to(tl.float32), 1)
        line = base + 3 * ((y + tl.minimum(tl.maximum(k, 0), h - 1)).to(tl.int64) * edge + x)
        red = tl.zeros([ROWS, WIDE], tl.float32)
        red, green, blue, across_total = columns(
            red, red, red, centre * 0, line, k < below, begin, end, centre, 1 / stretch, w,
            T, RADIUS, ANTIALIAS, CHUNK,
        )  # fmt: skip
        level = (1 / (255 * across_total))[None, :]
        r = tl.dot(weight, (red * level).to(T), r, input_precision="ieee")
        g = tl.dot(weight, (green * level).to(T), g, input_precision="ieee")
        b = tl.dot(weight, (blue * level).to(T), b, input_precision="ieee")
    level = (1 / total)[:, None]
    r, g, b = unit(r * level), unit(g * level), unit(b * level)
    keep(r, g, b, i, j, ok, view, row, sharp, partial, HEIGHT, WIDTH, MEANS)


@triton.jit
def taps_across(
    pixels, places, table, half,
    WIDTH: tl.constexpr, RADIUS: tl.constexpr, ANTIALIAS: tl.constexpr,
    TALL: tl.constexpr, WIDE: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """The executor's `across`, UNROLL taps at a time."""
    view = tl.program_id(1)
    row, place = table + view * COLUMNS, places + view * PLACES
    h, w = tl.load(row + H).to(tl.int32), tl.load(row + W)
    i, j, ok = tile_of(h, WIDTH, TALL, WIDE)
    if tl.program_id(0) // tl.cdiv(WIDTH, WIDE) * TALL < h:
        x, y = tl.load(row + X).to(tl.int32), tl.load(row + Y).to(tl.int32)
        edge = tl.load(place + EDGE).to(tl.int32)
        source = tl.where(tl.load(row + HFLIP) > 0, WIDTH - 1 - j, j)
        first, centre, stretch, taps = spread(source, w, WIDTH, RADIUS, ANTIALIAS)
        inverse = 1 / stretch
        line = pixels + tl.load(place + CANVAS) + 3 * ((y + i).to(tl.int64) * edge + x)
        r = tl.zeros([TALL, WIDE], tl.float32)
        g, b, total = r, r, centre * 0
        for n in range(0, taps, UNROLL):
            for m in tl.static_range(UNROLL):
                k = first + n + m
                weight = weigh(tl.abs((k + 0.5 - centre) * inverse), RADIUS, ANTIALIAS)
                if ANTIALIAS:
                    weight = tl.where((k >= 0) & (k < w), weight, 0.0)
                k = 3 * tl.minimum(tl.maximum(k, 0.0), w - 1).to(tl.int32)
                at = line[:, None] + k[None, :]
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
def taps_blur(
    source, table, out, mean_r, mean_g, mean_b, std_r, std_g, std_b,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, REACH: tl.constexpr, DOWN: tl.constexpr,
    TALL: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The executor's `blur`, in tiles: what is reflected is reckoned per row or column."""
    plane = tl.program_id(1)
    row, c = table + plane // 3 * COLUMNS, plane % 3
    if tl.load(row + BLUR) > 0:
        i, j, ok = tile_of(HEIGHT, WIDTH, TALL, WIDE)
        begin = source + plane.to(tl.int64) * (HEIGHT * WIDTH)
        sigma = tl.load(row + SIGMA)
        x = tl.load(begin + (i * WIDTH)[:, None] + j[None, :], mask=ok, other=0).to(tl.float32)
        total = sigma * 0 + 1
        for t in range(1, tl.minimum(REACH, tl.ceil(sigma * CUT).to(tl.int32)) + 1):
            weight = tl.exp(-0.5 * (t / sigma) * (t / sigma))
            if DOWN:
                before = begin + (mirror(i - t, HEIGHT) * WIDTH)[:, None] + j[None, :]
                after = begin + (mirror(i + t, HEIGHT) * WIDTH)[:, None] + j[None, :]
            else:
                before = begin + (i * WIDTH)[:, None] + mirror(j - t, WIDTH)[None, :]
                after = begin + (i * WIDTH)[:, None] + mirror(j + t, WIDTH)[None, :]
            both = tl.load(before, mask=ok, other=0).to(tl.float32)
            both += tl.load(after, mask=ok, other=0).to(tl.float32)
            x += weight * both
            total += 2 * weight
        x = x / total
        if DOWN:
            mean = tl.where(c == 0, mean_r, tl.where(c == 1, mean_g, mean_b))
            std = tl.where(c == 0, std_r, tl.where(c == 1, std_g, std_b))
            x = finish(x, row, mean, std)
        to = out + plane.to(tl.int64) * (HEIGHT * WIDTH) + (i * WIDTH)[:, None] + j[None, :]
        tl.store(to, x.to(out.dtype.element_ty), mask=ok)


@triton.jit
def bell(distance, sigma, reach):
    """Weights of a Gaussian at whole distances, 0 beyond its reach."""
    t = distance / sigma
    return tl.where(tl.abs(distance) <= reach, tl.exp(-0.5 * t * t), 0.0)


@triton.jit
def fused_blur(
    source, table, out, mean_r, mean_g, mean_b, std_r, std_g, std_b,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, TALL_REACH: tl.constexpr, WIDE_REACH: tl.constexpr,
    POWER: tl.constexpr, COLS: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
    TALL: tl.constexpr, WIDE: tl.constexpr, PLANES: tl.constexpr,
):  # fmt: skip
    """Both axes of the Gaussian, then finish. Grid (tiles, R * 3 / PLANES).

    POWER: of two, above both reaches. COLS: of two, >= WIDE + 2 WIDE_REACH. CHUNKS of CHUNK rows
    cover TALL + 2 TALL_REACH.
    """
    parts: tl.constexpr = 3 // PLANES
    view = tl.program_id(1) // parts
    row = table + view * COLUMNS
    T: tl.constexpr = source.dtype.element_ty
    if tl.load(row + BLUR) > 0:
        i, j, ok = tile_of(HEIGHT, WIDTH, TALL, WIDE)
        sigma = tl.load(row + SIGMA)
        cut = tl.ceil(sigma * CUT).to(tl.int32)
        wide, tall = tl.minimum(WIDE_REACH, cut), tl.minimum(TALL_REACH, cut)
        far = tl.arange(0, POWER)
        x = tl.min(j, 0) - WIDE_REACH + tl.arange(0, COLS)
        across_total = 2 * tl.sum(bell(far, sigma, wide), 0) - 1
        weight_x = (bell(x[:, None] - j[None, :], sigma, wide) / across_total).to(T)
        column = mirror(x, WIDTH)
        needed = (x < tl.min(j, 0) + WIDE + wide) & (x >= tl.min(j, 0) - wide) & (column >= 0)
        down_total = 2 * tl.sum(bell(far, sigma, tall), 0) - 1
        for c in tl.static_range(PLANES):
            channel = tl.program_id(1) % parts * PLANES + c
            begin = source + (view.to(tl.int64) * 3 + channel) * (HEIGHT * WIDTH)
            z = tl.zeros([TALL, WIDE], tl.float32)
            for n in tl.static_range(CHUNKS):
                y = tl.min(i, 0) - TALL_REACH + n * CHUNK + tl.arange(0, CHUNK)
                line = mirror(y, HEIGHT)
                inside = (line >= 0)[:, None] & needed[None, :]
                at = begin + line[:, None] * WIDTH + column[None, :]
                these = tl.load(at, mask=inside, other=0)
                along = tl.dot(these, weight_x, input_precision="ieee").to(T)
                weight_y = (bell(i[:, None] - y[None, :], sigma, tall) / down_total).to(T)
                z = tl.dot(weight_y, along, z, input_precision="ieee")
            mean = tl.where(channel == 0, mean_r, tl.where(channel == 1, mean_g, mean_b))
            std = tl.where(channel == 0, std_r, tl.where(channel == 1, std_g, std_b))
            to = out + (view.to(tl.int64) * 3 + channel) * (HEIGHT * WIDTH)
            to += i[:, None] * WIDTH + j[None, :]
            tl.store(to, finish(z, row, mean, std).to(out.dtype.element_ty), mask=ok)


def prepare(
    policy: Policy, canvases: Sequence[Tensor], table_VBP: F32, *, device: torch.device,
    dtype: torch.dtype, crop: dict[str, dict[str, int]] | None, blur: dict[str, int] | None,
) -> Callable[[], Tensor]:  # fmt: skip
    """As the executor's `prepare`; crop, blur: constants of kernels; None: its own."""
    scratch = torch.float32 if dtype == torch.float32 else torch.float16
    given = triton_tables.inputs(
        policy, canvases, table_VBP, device=device, itemsize=scratch.itemsize,
        limit=executor.SCRATCH,
    )  # fmt: skip
    views, batch, _ = table_VBP.shape

    def run() -> Tensor:
        out = given.table_RP.new_empty((views * batch, 3, *policy.crop.size), dtype=dtype)
        for span in given.spans:
            launch(policy, given, span, scratch, out[span.first : span.last], crop, blur)
        return out.view(views, batch, 3, *policy.crop.size)

    return run


def launch(policy, given, span, scratch, out, crop, blur) -> None:
    """As the executor's, with the kernels that are asked for."""
    found = {type(step.op): step.op for step in policy.steps}
    (height, width), views = policy.crop.size, len(out)
    places, table = (t[span.first : span.last] for t in (given.places_RK, given.table_RP))
    sharp = torch.empty_like(out, dtype=scratch)
    shape, scale = {"HEIGHT": height, "WIDTH": width}, executor.normalisation(policy)
    means = ops.ColorJitter in found
    if crop is None:
        partial = executor.crop(policy, given, span, sharp, means=means)
    else:
        partial = cropped(policy, given, span, sharp, places, table, means, crop)
    parts, flat = partial.shape[1], triton.cdiv(height * width, executor.FLAT)
    triton_colour.colour[(flat, views)](
        sharp, table, partial, out, *scale, SIZE=height * width, PARTS=parts,
        PARTS_POWER=triton.next_power_of_2(parts), TILE=executor.FLAT, num_warps=executor.WARPS,
    )  # fmt: skip
    blurring = found.get(ops.RandomGaussianBlur)
    if blurring is None:
        return
    tall, wide = (size // 2 for size in blurring.kernel_size)
    if blur is None:
        soft, more = torch.empty_like(sharp), {"TILE": executor.FLAT, "num_warps": executor.WARPS}
        axis = triton_kernels.blur[(flat, 3 * views)]
        axis(sharp, table, soft, *scale, **shape, **more, REACH=wide, DOWN=False)
        axis(soft, table, out, *scale, **shape, **more, REACH=tall, DOWN=True)
        return
    if "CHUNK" not in blur:
        soft, grid = torch.empty_like(sharp), (tiles(height, width, blur), 3 * views)
        taps_blur[grid](sharp, table, soft, *scale, **shape, **blur, REACH=wide, DOWN=False)
        taps_blur[grid](soft, table, out, *scale, **shape, **blur, REACH=tall, DOWN=True)
        return
    chunk, power = blur["CHUNK"], triton.next_power_of_2
    fused_blur[(tiles(height, width, blur), views * 3 // blur["PLANES"])](
        sharp, table, out, *scale, **shape, **blur, TALL_REACH=tall, WIDE_REACH=wide,
        POWER=power(max(tall, wide) + 1), COLS=power(blur["WIDE"] + 2 * wide),
        CHUNKS=triton.cdiv(blur["TALL"] + 2 * tall, chunk),
    )  # fmt: skip


def cropped(policy, given, span, sharp, places, table, means, crop) -> Tensor:
    """The partial sums of the crop by products."""
    height, width = policy.crop.size
    kernel = {"RADIUS": RADIUS[policy.crop.resample], "ANTIALIAS": policy.crop.antialias}
    shape, views = {"HEIGHT": height, "WIDTH": width, "MEANS": means}, len(sharp)
    if "fused" in crop:
        partial = table.new_empty((views, tiles(height, width, crop["fused"])))
        fused_crop[(partial.shape[1], views)](
            given.pixels_N, places, table, sharp, partial, **shape, **kernel, **crop["fused"]
        )
        return partial
    half = sharp.new_empty(span.values)
    if "across" in crop:
        kernels = taps_across if "UNROLL" in crop["across"] else across
        kernels[(tiles(span.tallest, width, crop["across"]), views)](
            given.pixels_N, places, table, half, WIDTH=width, **kernel, **crop["across"]
        )
    else:
        tile = {**executor.TILE, "num_warps": executor.WARPS}
        triton_kernels.across[(tiles(span.tallest, width, tile), views)](
            given.pixels_N, places, table, half, WIDTH=width, **kernel, **tile
        )
    kernels, tile = (down, crop["down"]) if "down" in crop else (
        triton_kernels.down, {**executor.TILE, "num_warps": executor.WARPS})
    partial = table.new_empty((views, tiles(height, width, tile)))
    kernels[(partial.shape[1], views)](
        half, places, table, sharp, partial, **kernel, **shape, **tile
    )
    return partial


def tiles(height: int, width: int, tile: dict[str, int]) -> int:
    """Programs of a view."""
    return triton.cdiv(height, tile["TALL"]) * triton.cdiv(width, tile["WIDE"])
