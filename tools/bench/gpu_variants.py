"""Fused variants of the triton executor's crop and blur, which gpu_kernels.py times beside it.

Both resample by small matrix products in float16 on tensor cores and keep what is between the two
axes in registers: the crop leaves no scratch memory of box rows, the blur no soft copy. They are
for antialiased crops and views of half precision.
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
from sslpipe.modalities.image.executors import triton_colour, triton_kernels, triton_tables
from sslpipe.modalities.image.executors.planar_crop import RADIUS
from sslpipe.modalities.image.executors.triton_colour import BLUR, COLUMNS, SIGMA, finish, unit
from sslpipe.modalities.image.executors.triton_kernels import (
    CANVAS,
    CUT,
    EDGE,
    HFLIP,
    PLACES,
    VFLIP,
    H,
    W,
    X,
    Y,
    keep,
    mirror,
    spread,
    tap,
    tile_of,
    weigh,
)

F32 = npt.NDArray[np.float32]


@triton.jit
def row_of_products(
    line, inside, source, w, weights, r, g, b,
    WIDTH: tl.constexpr, RADIUS: tl.constexpr, CHUNK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Add what CHUNK rows of the canvas, resized along x, give to a tile: weights (TALL, CHUNK)."""
    first, centre, stretch, taps = spread(source, w, WIDTH, RADIUS, True)
    red = tl.zeros([CHUNK, WIDE], tl.float32)
    green, blue, total = red, red, centre * 0
    for n in range(taps):
        k, weight = tap(n, first, centre, stretch, w, RADIUS, True)
        at = line[:, None] + (3 * k)[None, :]
        red += weight[None, :] * tl.load(at, mask=inside[:, None], other=0).to(tl.float32)
        green += weight[None, :] * tl.load(at + 1, mask=inside[:, None], other=0).to(tl.float32)
        blue += weight[None, :] * tl.load(at + 2, mask=inside[:, None], other=0).to(tl.float32)
        total += weight
    level = (1 / (255 * total))[None, :]
    r = tl.dot(weights, (red * level).to(tl.float16), r)
    g = tl.dot(weights, (green * level).to(tl.float16), g)
    b = tl.dot(weights, (blue * level).to(tl.float16), b)
    return r, g, b


@triton.jit
def fused_crop(
    pixels, places, table, sharp, partial,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, RADIUS: tl.constexpr, MEANS: tl.constexpr,
    CHUNK: tl.constexpr, TALL: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The box resized along both axes and flipped. Grid (tiles, R)."""
    view = tl.program_id(1)
    row, place = table + view * COLUMNS, places + view * PLACES
    h, w = tl.load(row + H), tl.load(row + W)
    x, y = tl.load(row + X).to(tl.int32), tl.load(row + Y).to(tl.int32)
    edge = tl.load(place + EDGE).to(tl.int32)
    i, j, ok = tile_of(HEIGHT, WIDTH, TALL, WIDE)
    down = tl.where(tl.load(row + VFLIP) > 0, HEIGHT - 1 - i, i)
    # columns beyond the view are computed at its border, and not stored
    right = tl.where(tl.load(row + HFLIP) > 0, WIDTH - 1 - j, j)
    right = tl.minimum(tl.maximum(right, 0), WIDTH - 1)
    first, centre, stretch, taps = spread(down, h, HEIGHT, RADIUS, True)
    begin = tl.maximum(tl.min(first, 0), 0.0).to(tl.int32)
    end = tl.minimum(tl.max(first, 0) + taps, h).to(tl.int32)
    base = pixels + tl.load(place + CANVAS)
    r = tl.zeros([TALL, WIDE], tl.float32)
    g, b, total = r, r, centre * 0
    for start in range(begin, end, CHUNK):
        k = start + tl.arange(0, CHUNK)
        distance = tl.abs((k[None, :] + 0.5 - centre[:, None]) / stretch)
        weights = tl.where((k < h)[None, :], weigh(distance, RADIUS, True), 0.0)
        total += tl.sum(weights, 1)
        line = base + 3 * ((y + k).to(tl.int64) * edge + x)
        r, g, b = row_of_products(
            line, k < end, right, w, weights.to(tl.float16), r, g, b, WIDTH, RADIUS, CHUNK, WIDE
        )  # fmt: skip
    level = (1 / total)[:, None]
    r, g, b = unit(r * level), unit(g * level), unit(b * level)
    keep(r, g, b, i, j, ok, view, row, sharp, partial, HEIGHT, WIDTH, MEANS)


@triton.jit
def bell(distance, sigma, reach):
    """Weights of a Gaussian at whole distances, 0 beyond its reach."""
    t = distance / sigma
    return tl.where(tl.abs(distance) <= reach, tl.exp(-0.5 * t * t), 0.0)


@triton.jit
def fused_blur(
    source, table, out, mean_r, mean_g, mean_b, std_r, std_g, std_b,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, REACH: tl.constexpr, POWER: tl.constexpr,
    CHUNK: tl.constexpr, TALL: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Both axes of the Gaussian, then finish. Grid (tiles, 3 R). POWER: of two, above REACH."""
    plane = tl.program_id(1)
    row, c = table + plane // 3 * COLUMNS, plane % 3
    if tl.load(row + BLUR) > 0:
        i, j, ok = tile_of(HEIGHT, WIDTH, TALL, WIDE)
        sigma = tl.load(row + SIGMA)
        reach = tl.minimum(REACH, tl.ceil(sigma * CUT).to(tl.int32))
        total = 2 * tl.sum(bell(tl.arange(0, POWER), sigma, reach), 0) - 1
        begin = source + plane.to(tl.int64) * (HEIGHT * WIDTH)
        top, left = tl.min(i, 0) - reach, tl.min(j, 0) - reach
        x = tl.zeros([TALL, WIDE], tl.float32)
        for below in range(0, TALL + 2 * reach, CHUNK):
            y = top + below + tl.arange(0, CHUNK)
            line = mirror(y, HEIGHT)
            along = tl.zeros([CHUNK, WIDE], tl.float32)
            for beside in range(0, WIDE + 2 * reach, CHUNK):
                k = left + beside + tl.arange(0, CHUNK)
                column = mirror(k, WIDTH)
                inside = ((line >= 0)[:, None]) & ((column >= 0)[None, :])
                at = begin + line[:, None] * WIDTH + column[None, :]
                these = tl.load(at, mask=inside, other=0).to(tl.float16)
                weights = bell(k[:, None] - j[None, :], sigma, reach) / total
                along = tl.dot(these, weights.to(tl.float16), along)
            weights = bell(i[:, None] - y[None, :], sigma, reach) / total
            x = tl.dot(weights.to(tl.float16), along.to(tl.float16), x)
        mean = tl.where(c == 0, mean_r, tl.where(c == 1, mean_g, mean_b))
        std = tl.where(c == 0, std_r, tl.where(c == 1, std_g, std_b))
        to = out + plane.to(tl.int64) * (HEIGHT * WIDTH) + i[:, None] * WIDTH + j[None, :]
        tl.store(to, finish(x, row, mean, std).to(out.dtype.element_ty), mask=ok)


def prepare(
    policy: Policy, canvases: Sequence[Tensor], table_VBP: F32, *, device: torch.device,
    dtype: torch.dtype, crop: dict[str, int] | None, blur: dict[str, int] | None,
) -> Callable[[], Tensor]:  # fmt: skip
    """As the executor's `prepare`; crop, blur: CHUNK, TALL, WIDE and num_warps; None: its own."""
    given = triton_tables.inputs(
        policy, canvases, table_VBP, device=device, itemsize=2, limit=executor.SCRATCH
    )
    views, batch, _ = table_VBP.shape

    def run() -> Tensor:
        out = given.table_RP.new_empty((views * batch, 3, *policy.crop.size), dtype=dtype)
        for span in given.spans:
            launch(policy, given, span, out[span.first : span.last], crop, blur)
        return out.view(views, batch, 3, *policy.crop.size)

    return run


def launch(policy, given, span, out, crop, blur) -> None:
    """As the executor's, with the fused kernels that are asked for."""
    found = {type(step.op): step.op for step in policy.steps}
    (height, width), views = policy.crop.size, len(out)
    places, table = (t[span.first : span.last] for t in (given.places_RK, given.table_RP))
    sharp = torch.empty_like(out, dtype=torch.float16)
    shape, scale = {"HEIGHT": height, "WIDTH": width}, executor.normalisation(policy)
    means = ops.ColorJitter in found
    if crop is None:
        partial = executor.crop(policy, given, span, sharp, means=means)
    else:
        partial = table.new_empty((views, tiles(policy, crop)))
        fused_crop[(partial.shape[1], views)](
            given.pixels_N, places, table, sharp, partial, **shape, **crop, MEANS=means,
            RADIUS=RADIUS[policy.crop.resample],
        )  # fmt: skip
    parts, flat = partial.shape[1], triton.cdiv(height * width, executor.FLAT)
    triton_colour.colour[(flat, views)](
        sharp, table, partial, out, *scale, SIZE=height * width, PARTS=parts,
        PARTS_POWER=triton.next_power_of_2(parts), TILE=executor.FLAT, num_warps=executor.WARPS,
    )  # fmt: skip
    blurring = found.get(ops.RandomGaussianBlur)
    if blurring is None:
        return
    reach = blurring.kernel_size[0] // 2
    if blur is None:
        soft, more = torch.empty_like(sharp), {"TILE": executor.FLAT, "REACH": reach}
        axis = triton_kernels.blur[(flat, 3 * views)]
        axis(sharp, table, soft, *scale, **shape, **more, DOWN=False, num_warps=executor.WARPS)
        axis(soft, table, out, *scale, **shape, **more, DOWN=True, num_warps=executor.WARPS)
        return
    fused_blur[(tiles(policy, blur), 3 * views)](
        sharp, table, out, *scale, **shape, **blur, REACH=reach,
        POWER=triton.next_power_of_2(reach + 1),
    )  # fmt: skip


def tiles(policy: Policy, tile: dict[str, int]) -> int:
    """Programs of a view."""
    height, width = policy.crop.size
    return triton.cdiv(height, tile["TALL"]) * triton.cdiv(width, tile["WIDE"])
