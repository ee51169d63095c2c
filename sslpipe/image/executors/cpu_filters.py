"""Crops and blur of one image, (3, h, w) float32, C-contiguous: the loops of the `cpu` executor.

Both are separable, and go along the rows first. A filtered row is kept only as long as the pass
down the columns needs it: nothing but the image itself is ever larger than the L1 cache. The two
inner loops are written in LLVM's vectors, as it does not find them in scalar code.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .cpu_jit import Image, kernel

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
f32 = np.float32

LANES = 16  # floats of a vector; two or four where the machine's are shorter
BLOCK = 7 * LANES  # floats of a weighted sum at a time: half of a row of 224
QUAD = 4  # output pixels at a time along a row
FIVE = 5  # source pixels of 3 bytes in a vector, one lane idle
FLOATS = ir.VectorType(ir.FloatType(), LANES)
BYTES = ir.VectorType(ir.IntType(8), LANES)
HUGE = float(np.finfo(np.float32).max)


def cell(context: Any, builder: Any, signature: Any, args: Any, name: int, index: Any) -> Any:
    """Pointer to an element of the array that is argument `name`; no bounds are checked."""
    array = context.make_array(signature.args[name])(context, builder, args[name])
    return builder.gep(array.data, [index])


def vector(builder: Any, pointer: Any, kind: Any = FLOATS) -> Any:
    """The pointer as one to an unaligned vector."""
    return builder.bitcast(pointer, kind.as_pointer())


def pick(builder: Any, low: Any, high: Any, lanes: Sequence[int]) -> Any:
    """The chosen lanes of two vectors; those of the second count from LANES."""
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), list(lanes))
    return builder.shuffle_vector(low, high, mask)


def total(builder: Any, first: Any, *others: Any) -> Any:
    for other in others:
        first = builder.fadd(first, other, flags=("fast",))
    return first


def accumulate(builder: Any, sums: Any, values: Any, weight: Any) -> None:
    """sums += values * weight; LLVM keeps sums in a register."""
    product = builder.fmul(values, weight, flags=("fast",))
    builder.store(total(builder, builder.load(sums), product), sums)


def zeros(builder: Any) -> Any:
    """Sums to accumulate into."""
    return cgutils.alloca_once_value(builder, ir.Constant(FLOATS, [0.0] * LANES))


def three_planes(builder: Any, sums: Sequence[Any]) -> list[Any]:
    """Vectors of five weighted RGB pixels, one for each output pixel: red, green and blue of these.

    Two by two, pixels 0 + 2 + 4 and 1 + 3 of both stand side by side; then these are added.
    """
    halves, idle = [], LANES - 1  # whose weight is 0
    for low, high in (sums[:2], sums[2:]):
        ends = [*range(6), *range(16, 22)], [*range(6, 12), *range(22, 28)]
        last = [12, 13, 14, *[idle] * 3, 28, 29, 30, *[idle] * 3]
        parts = [pick(builder, low, high, [*lanes, *[idle] * 4]) for lanes in (*ends, last)]
        halves.append(total(builder, *parts))
    pixels = [0, 6, 16, 22]
    even, odd = (
        pick(builder, *halves, [c + 3 * i + at for c in range(3) for at in pixels] + [idle] * 4)
        for i in range(2)
    )
    planes = total(builder, even, odd)
    return [pick(builder, planes, planes, range(QUAD * c, QUAD * c + QUAD)) for c in range(3)]


@intrinsic  # type: ignore[untyped-decorator]
def quad(
    typing: Any, target: Any, to: Any, plane: Any, line: Any, starts: Any, weights: Any, o: Any,
    groups: Any,
) -> tuple[Any, Any]:  # fmt: skip
    """Four output pixels of a row, from o on: weighted sums of groups of five source pixels.

    line: bytes of a row, readable for LANES bytes from where any group begins.
    starts: per output pixel, where its first group begins. weights: LANES per output and group.
    Goes to target[to], target[to + plane] and target[to + 2 * plane].
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, to, plane, _, _, _, o, groups = args
        outputs = [builder.add(o, o.type(i)) for i in range(QUAD)]
        at = [
            builder.load(cell(context, builder, signature, args, 4, output)) for output in outputs
        ]
        sums = [zeros(builder) for _ in outputs]
        with cgutils.for_range(builder, groups) as loop:
            for output, start, into in zip(outputs, at, sums, strict=True):
                byte = builder.add(start, builder.mul(loop.index, o.type(3 * FIVE)))
                pointer = cell(context, builder, signature, args, 3, byte)
                pixels = builder.load(vector(builder, pointer, BYTES), align=1)
                group = builder.add(builder.mul(output, groups), loop.index)
                place = builder.mul(group, o.type(LANES))
                pointer = cell(context, builder, signature, args, 5, place)
                weight = builder.load(vector(builder, pointer), align=4)
                accumulate(builder, into, builder.uitofp(pixels, FLOATS), weight)
        planes = three_planes(builder, [builder.load(into) for into in sums])
        for c, values in enumerate(planes):
            place = builder.add(to, builder.mul(plane, o.type(c)))
            pointer = cell(context, builder, signature, args, 0, place)
            builder.store(values, vector(builder, pointer, values.type), align=4)
        return context.get_dummy_value()

    number = types.intp
    return types.void(target, number, number, line, starts, weights, number, number), generate


@intrinsic  # type: ignore[untyped-decorator]
def block(
    typing: Any, target: Any, to: Any, source: Any, at: Any, places: Any, weights: Any, taps: Any,
    low: Any, high: Any,
) -> tuple[Any, Any]:  # fmt: skip
    """BLOCK neighbours of `weighted_sum` at once, in registers."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, to, _, at, _, _, taps, low, high = args
        sums = [zeros(builder) for _ in range(0, BLOCK, LANES)]
        with cgutils.for_range(builder, taps) as loop:
            place = builder.load(cell(context, builder, signature, args, 4, loop.index))
            weight = builder.load(cell(context, builder, signature, args, 5, loop.index))
            weight = splat(builder, weight)
            for i, into in enumerate(sums):
                place_of = builder.add(builder.add(place, at), at.type(i * LANES))
                pointer = cell(context, builder, signature, args, 2, place_of)
                accumulate(builder, into, builder.load(vector(builder, pointer), align=4), weight)
        for i, into in enumerate(sums):
            values, floor, ceiling = builder.load(into), splat(builder, low), splat(builder, high)
            values = builder.select(builder.fcmp_ordered("<", values, floor), floor, values)
            values = builder.select(builder.fcmp_ordered(">", values, ceiling), ceiling, values)
            pointer = cell(
                context, builder, signature, args, 0, builder.add(to, to.type(i * LANES))
            )
            builder.store(values, vector(builder, pointer), align=4)
        return context.get_dummy_value()

    number, real = types.intp, types.float32
    return types.void(target, number, source, number, places, weights, number, real, real), generate


def splat(builder: Any, value: Any) -> Any:
    """One float in all lanes."""
    one = builder.insert_element(ir.Constant(FLOATS, ir.Undefined), value, ir.IntType(32)(0))
    return pick(builder, one, one, [0] * LANES)


@kernel
def weighted_sum(
    target: Image, to: int, size: int, source: Image, places: I64, weights: Image, low: f32,
    high: f32,
) -> None:  # fmt: skip
    """target[to + j] = sum over k of weights[k] * source[places[k] + j], j < size, clamped; flat.

    The target is no part of the source: the last block may overlap the one before it.
    """
    if size < BLOCK:
        for j in range(size):
            value = f32(0)
            for k in range(places.size):
                value += weights[k] * source[places[k] + j]
            target[to + j] = min(max(value, low), high)
        return
    for j in range(0, size, BLOCK):
        i = min(j, size - BLOCK)
        block(target, to + i, source, i, places, weights, places.size, low, high)


@kernel
def aligned(size: int) -> Image:
    """Memory that begins at a cache line: loads across two take twice as long."""
    memory = np.empty(size + LANES, np.float32)
    start = -(memory.ctypes.data // 4) % LANES
    return memory[start : start + size]


@kernel
def tap(distance: f32, cubic: bool, a: f32) -> f32:
    """The triangle, or Keys' cubic with parameter a."""
    t = abs(distance)
    if not cubic:
        return max(f32(0), f32(1) - t)
    if t < 1:
        return ((a + f32(2)) * t - (a + f32(3))) * t * t + f32(1)
    if t < 2:
        return (((t - f32(5)) * t + f32(8)) * t - f32(4)) * a
    return f32(0)


@kernel
def axis(length: int, size: int, cubic: bool, antialias: bool, mirror: bool) -> tuple[I64, Image]:
    """Resampling of one axis as torch does it: the first source index and the (size, K) weights.

    Antialiased: a filter as wide as the step between outputs, cut at the border and normalised, the
    cubic with a = -0.5. Otherwise: a = -0.75, and the border pixel stands for those beyond it.
    In float32, as in torch: the weights then agree to rounding.
    """
    scale = f32(length) / f32(size)
    stretch = max(f32(1), scale) if antialias else f32(1)
    reach = stretch * (f32(2) if cubic else f32(1))
    a = f32(-0.5) if antialias else f32(-0.75)
    taps = min(int(np.ceil(f32(2) * reach)), length)
    first, weights = np.empty(size, np.int64), np.zeros((size, taps), np.float32)
    for o in range(size):
        center = scale * (f32(size - 1 - o if mirror else o) + f32(0.5))
        low = int(np.floor(center - reach + f32(0.5)))
        high = int(np.floor(center + reach + f32(0.5)))
        first[o] = min(max(low, 0), length - taps)
        total = f32(0)
        for i in range(low, high):
            if antialias and (i < 0 or i >= length):
                continue
            weight = tap((f32(i) - center + f32(0.5)) / stretch, cubic, a)
            k = min(max(i, 0), length - 1) - first[o]
            weights[o, min(max(k, 0), taps - 1)] += weight
            total += weight
        weights[o] /= total
    return first, weights


@kernel
def in_groups(first: I64, weights: Image, size: int) -> tuple[I64, Image, int]:
    """(starts, weights, groups) as `quad` takes them, for `size` outputs; those added weigh 0."""
    taps = weights.shape[1]
    groups = (taps + FIVE - 1) // FIVE
    starts, spread = np.zeros(size, np.int64), np.zeros(size * groups * LANES, np.float32)
    for o in range(first.size):
        starts[o] = 3 * first[o]
        for k in range(taps):
            at = (o * groups + k // FIVE) * LANES + 3 * (k % FIVE)
            spread[at] = spread[at + 1] = spread[at + 2] = weights[o, k]
    return starts, spread, groups


@kernel
def resample(
    canvas: U8,
    x: int,
    y: int,
    width: int,
    height: int,
    mirror: tuple[bool, bool],
    cubic: bool,
    antialias: bool,
    image: Image,
) -> None:
    """Cut the box out of the canvas, resize it to the image, [0, 255] to [0, 1], clamped.

    mirror: (up and down, left and right).
    """
    _, out_h, out_w = image.shape
    first_y, weights_y = axis(height, out_h, cubic, antialias, False)
    first_x, weights_x = axis(width, out_w, cubic, antialias, mirror[1])
    weights_y *= f32(1 / 255)
    taps, m = weights_y.shape[1], (out_w + QUAD - 1) // QUAD * QUAD
    starts, spread, groups = in_groups(first_x, weights_x, m)
    line = np.zeros(3 * (width + FIVE * groups) + LANES, np.uint8)
    ring, places = aligned(taps * 3 * m), np.empty(taps, np.int64)
    slots = np.arange(height) % taps * 3 * m
    flat, source, stride = (
        image.reshape(image.size),
        canvas.reshape(canvas.size),
        3 * canvas.shape[1],
    )
    done = 0
    for o in range(out_h):
        for row in range(max(done, first_y[o]), first_y[o] + taps):
            start = (y + row) * stride + 3 * x
            for j in range(np.uint64(3 * width)):
                line[j] = source[np.uint64(start) + j]
            for p in range(0, m, QUAD):
                quad(ring, slots[row] + p, m, line, starts, spread, p, groups)
        done = first_y[o] + taps
        to = out_h - 1 - o if mirror[0] else o
        for c in range(3):
            for k in range(taps):
                places[k] = slots[first_y[o] + k] + c * m
            at = (c * out_h + to) * out_w
            weighted_sum(flat, at, out_w, ring, places, weights_y[o], f32(0), f32(1))


@kernel
def cut(canvas: U8, x: int, y: int, mirror: tuple[bool, bool], image: Image) -> None:
    """Cut a box of the image's size out of the canvas, zero outside it."""
    _, height, width = image.shape
    for i in range(height):
        row = y + (height - 1 - i if mirror[0] else i)
        for j in range(width):
            column = x + (width - 1 - j if mirror[1] else j)
            inside = 0 <= row < canvas.shape[0] and 0 <= column < canvas.shape[1]
            for c in range(3):
                image[c, i, j] = f32(canvas[row, column, c]) / f32(255) if inside else f32(0)


@kernel
def gaussian(sigma: float, size: int) -> Image:
    """Normalised weights of an odd window, cut where less than 1e-6 of the whole lies beyond."""
    radius = min(size // 2, int(np.ceil(5 * sigma)))
    weights = np.ones(2 * radius + 1, np.float32)
    for t in range(1, radius + 1):
        weights[radius - t] = weights[radius + t] = np.exp(-0.5 * (t / sigma) ** 2)
    weights /= weights.sum()
    return weights


@kernel
def reflect(i: int, n: int) -> int:
    """The index that stands for i beyond a border; the border pixel itself is not repeated."""
    i = abs(i)
    return max(0, 2 * (n - 1) - i) if i >= n else i


@kernel
def blur(image: Image, size_y: int, size_x: int, sigma: float) -> None:
    """Gaussian blur, reflecting at the border, in place: a row is read long before it is written."""
    _, height, width = image.shape
    weights_y, weights_x = gaussian(sigma, size_y), gaussian(sigma, size_x)
    pad_y, pad_x, rows = weights_y.size // 2, weights_x.size // 2, weights_y.size
    line, ring = np.empty(width + 2 * pad_x, np.float32), aligned(rows * width)
    slots = np.arange(height) % rows * width
    flat, places = image.reshape(image.size), np.empty(rows, np.int64)
    along, low, high = np.arange(weights_x.size), f32(-HUGE), f32(HUGE)
    for c in range(3):
        done = 0
        for i in range(height):
            for row in range(done, min(i + pad_y + 1, height)):
                for j in range(pad_x):
                    line[j] = image[c, row, reflect(j - pad_x, width)]
                    line[pad_x + width + j] = image[c, row, reflect(width + j, width)]
                at = (c * height + row) * width
                for j in range(np.uint64(width)):
                    line[np.uint64(pad_x) + j] = flat[np.uint64(at) + j]
                weighted_sum(ring, slots[row], width, line, along, weights_x, low, high)
                done = row + 1
            for k in range(rows):
                places[k] = slots[reflect(i + k - pad_y, height)]
            at = (c * height + i) * width
            weighted_sum(flat, at, width, ring, places, weights_y, low, high)
