"""Variants of the triton executor's crop and blur, which gpu_kernels.py times beside it.

They resample by small matrix products on tensor cores, in place of taps: each pixel of a tile is
read once, and the blur keeps what is between its two axes in registers. On an H200 the pass along x
takes 0.70 us a view instead of 0.92, that along y 0.32 instead of 0.39, the blur 0.96 instead of
1.01: a sixth of a chain's 2.5 us, for a second implementation of each.
"""

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
from sslpipe.modalities.image.executors import triton_kernels, triton_tables
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
Constants = dict[str, int] | None


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
    half, places, table, sharp,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, RADIUS: tl.constexpr, ANTIALIAS: tl.constexpr,
    TALL: tl.constexpr, WIDE: tl.constexpr, CHUNK: tl.constexpr,
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
    keep(r, g, b, i, j, ok, view, sharp, HEIGHT, WIDTH)


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
    dtype: torch.dtype, across_by: Constants = None, down_by: Constants = None,
    blur_by: Constants = None,
) -> Callable[[], Tensor]:  # fmt: skip
    """As the executor's `prepare`, with these kernels' constants; None: the executor's kernel."""
    scratch = torch.float32 if dtype == torch.float32 else torch.float16
    given = triton_tables.inputs(
        policy, canvases, table_VBP, device=device, itemsize=scratch.itemsize,
        limit=executor.SCRATCH,
    )  # fmt: skip
    views, batch, _ = table_VBP.shape

    def run() -> Tensor:
        out = given.table_RP.new_empty((views * batch, 3, *policy.crop.size), dtype=dtype)
        for span in given.spans:
            made = out[span.first : span.last]
            sharp = torch.empty_like(made, dtype=scratch)
            crop(policy, given, span, sharp, across_by, down_by)
            coloured(policy, given, span, sharp, made, blur_by)
        return out.view(views, batch, 3, *policy.crop.size)

    return run


def crop(policy, given, span, sharp, across_by: Constants, down_by: Constants) -> None:
    """As the executor's."""
    height, width = policy.crop.size
    places, table = (t[span.first : span.last] for t in (given.places_RK, given.table_RP))
    kernel = {"RADIUS": RADIUS[policy.crop.resample], "ANTIALIAS": policy.crop.antialias}
    own = {**executor.TILE, "num_warps": executor.WARPS}
    half, tile = sharp.new_empty(span.values), across_by or own
    first = across if across_by else triton_kernels.across
    first[(tiles(span.tallest, width, tile), len(sharp))](
        given.pixels_N, places, table, half, WIDTH=width, **kernel, **tile
    )
    second, tile = down if down_by else triton_kernels.down, down_by or own
    second[(tiles(height, width, tile), len(sharp))](
        half, places, table, sharp, HEIGHT=height, WIDTH=width, **kernel, **tile
    )


def coloured(policy, given, span, sharp, out, blur_by: Constants) -> None:
    """Colour, then both axes of the blur."""
    found = {type(step.op): step.op for step in policy.steps}
    (height, width), table = policy.crop.size, given.table_RP[span.first : span.last]
    shape, scale = {"HEIGHT": height, "WIDTH": width}, executor.normalisation(policy)
    executor.colour(policy, sharp, table, out)
    blurring = found.get(ops.RandomGaussianBlur)
    if blurring is None:
        return
    if blur_by is None:
        executor.blur(policy, blurring, sharp, table, out)
        return
    tall, wide = (size // 2 for size in blurring.kernel_size)
    power = triton.next_power_of_2
    fused_blur[(tiles(height, width, blur_by), len(out) * 3 // blur_by["PLANES"])](
        sharp, table, out, *scale, **shape, **blur_by, TALL_REACH=tall, WIDE_REACH=wide,
        POWER=power(max(tall, wide) + 1), COLS=power(blur_by["WIDE"] + 2 * wide),
        CHUNKS=triton.cdiv(blur_by["TALL"] + 2 * tall, blur_by["CHUNK"]),
    )  # fmt: skip


def tiles(height: int, width: int, tile: dict[str, int]) -> int:
    """Programs of a view."""
    return triton.cdiv(height, tile["TALL"]) * triton.cdiv(width, tile["WIDE"])
