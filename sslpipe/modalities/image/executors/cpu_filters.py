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

from .cpu_weights import Image, kernel

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
Axis = tuple[I64, Image]
f32 = np.float32

LANES = 16  # floats of a vector; LLVM makes several of one where the machine's are shorter
QUAD = 4  # output pixels at a time along a row
FIVE = 5  # RGB pixels in a vector; its last lane is idle
IDLE = LANES - 1
FLOATS = ir.VectorType(ir.FloatType(), LANES)
BYTES = ir.VectorType(ir.IntType(8), LANES)


class Emitter:
    """Writes the LLVM code of an intrinsic; arrays are known by their place among its arguments."""

    def __init__(self, context: Any, builder: Any, signature: Any, args: Any) -> None:
        self.context, self.builder, self.kinds, self.args = context, builder, signature.args, args

    def cell(self, array: int, index: Any) -> Any:
        """Pointer to an element; no bounds are checked."""
        made = self.context.make_array(self.kinds[array])
        data = made(self.context, self.builder, self.args[array]).data
        return self.builder.gep(data, [index])

    def load(self, array: int, index: Any, kind: Any) -> Any:
        """The vector that begins at an element."""
        pointer = self.builder.bitcast(self.cell(array, index), kind.as_pointer())
        return self.builder.load(pointer, align=1)

    def store(self, values: Any, array: int, index: Any) -> None:
        pointer = self.builder.bitcast(self.cell(array, index), values.type.as_pointer())
        self.builder.store(values, pointer, align=1)

    def pick(self, low: Any, high: Any, lanes: Sequence[int]) -> Any:
        """The chosen lanes of two vectors; those of the second count from LANES."""
        mask = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), list(lanes))
        return self.builder.shuffle_vector(low, high, mask)

    def splat(self, value: Any) -> Any:
        """Put one float into all lanes of a vector."""
        empty = ir.Constant(FLOATS, ir.Undefined)
        first = self.builder.insert_element(empty, value, ir.IntType(32)(0))
        return self.pick(first, first, [0] * LANES)

    def zeros(self, count: int) -> list[Any]:
        """Sums to accumulate into; LLVM keeps them in registers."""
        zero = ir.Constant(FLOATS, [0.0] * LANES)
        return [cgutils.alloca_once_value(self.builder, zero) for _ in range(count)]

    def total(self, first: Any, *others: Any) -> Any:
        for other in others:
            first = self.builder.fadd(first, other, flags=("fast",))
        return first

    def accumulate(self, sums: Any, values: Any, weights: Any) -> None:
        product = self.builder.fmul(values, weights, flags=("fast",))
        self.builder.store(self.total(self.builder.load(sums), product), sums)

    def planes(self, sums: Sequence[Any]) -> list[Any]:
        """Four vectors of five RGB pixels -> the four sums' red, green and blue.

        Two by two, pixels 0 + 2 + 4 and 1 + 3 of both stand side by side; then these are added.
        """
        halves = []
        for low, high in (sums[:2], sums[2:]):
            ends = [*range(6), *range(16, 22)], [*range(6, 12), *range(22, 28)]
            last = [12, 13, 14, *[IDLE] * 3, 28, 29, 30, *[IDLE] * 3]
            parts = [self.pick(low, high, [*lanes, *[IDLE] * 4]) for lanes in (*ends, last)]
            halves.append(self.total(*parts))
        low, high = halves
        lanes = [c + at for c in range(3) for at in (0, 6, 16, 22)]
        odd = [lane + 3 for lane in lanes]
        parts = [self.pick(low, high, [*chosen, *[IDLE] * 4]) for chosen in (lanes, odd)]
        both = self.total(*parts)
        return [self.pick(both, both, range(QUAD * c, QUAD * c + QUAD)) for c in range(3)]


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
        emit, integer = Emitter(context, builder, signature, args), args[1].type
        _, to, plane, _, _, _, o, groups = args
        outputs = [builder.add(o, integer(i)) for i in range(QUAD)]
        begins = [builder.load(emit.cell(4, output)) for output in outputs]
        sums = emit.zeros(QUAD)
        with cgutils.for_range(builder, groups) as loop:
            for output, begin, into in zip(outputs, begins, sums, strict=True):
                byte = builder.add(begin, builder.mul(loop.index, integer(3 * FIVE)))
                pixels = builder.uitofp(emit.load(3, byte, BYTES), FLOATS)
                group = builder.add(builder.mul(output, groups), loop.index)
                weight = emit.load(5, builder.mul(group, integer(LANES)), FLOATS)
                emit.accumulate(into, pixels, weight)
        for c, values in enumerate(emit.planes([builder.load(into) for into in sums])):
            emit.store(values, 0, builder.add(to, builder.mul(plane, integer(c))))
        return context.get_dummy_value()

    number = types.intp
    return types.void(target, number, number, line, starts, weights, number, number), generate


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def block(
    typing: Any, target: Any, to: Any, source: Any, at: Any, places: Any, weights: Any, taps: Any,
    count: Any,
) -> tuple[Any, Any]:  # fmt: skip
    """`count` vectors of `weighted_sum` at once, in registers: target[to:], source[place + at:]."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit, integer = Emitter(context, builder, signature, args), args[1].type
        _, to, _, at, _, _, taps, _ = args
        sums = emit.zeros(count.literal_value)
        with cgutils.for_range(builder, taps) as loop:
            begin = builder.add(at, builder.load(emit.cell(4, loop.index)))
            weight = emit.splat(builder.load(emit.cell(5, loop.index)))
            for i, into in enumerate(sums):
                place = builder.add(begin, integer(i * LANES))
                emit.accumulate(into, emit.load(2, place, FLOATS), weight)
        for i, into in enumerate(sums):
            emit.store(builder.load(into), 0, builder.add(to, integer(i * LANES)))
        return context.get_dummy_value()

    number = types.intp
    return types.void(target, number, source, number, places, weights, number, count), generate


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
def aligned(size: int) -> Image:
    """Memory that begins at a cache line: loads across two take twice as long."""
    memory = np.empty(size + LANES, np.float32)
    start = -(memory.ctypes.data // 4) % LANES
    return memory[start : start + size]


@kernel
def in_groups(first: I64, weights: Image) -> tuple[I64, Image, int]:
    """(starts, weights, groups) as `quad` takes them; outputs that fill the last quad weigh 0."""
    taps, size = weights.shape[1], (first.size + QUAD - 1) // QUAD * QUAD
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
    canvas: U8, x: int, y: int, upside_down: bool, down: Axis, along: Axis, image: Image
) -> None:
    """Resize a box of the canvas to the image, [0, 255] to [0, 1], clamped.

    x, y: the upper left corner. down, along: `cpu_weights.axis` of the sides of box and image.
    """
    (first_y, weights_y), (first_x, weights_x) = down, along
    _, out_h, out_w = image.shape
    starts, spread, groups = in_groups(first_x, weights_x)
    taps, m = weights_y.shape[1], starts.size
    width, height = first_x.max() + weights_x.shape[1], first_y.max() + taps
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
            start = np.uint64((y + row) * stride + 3 * x)
            for j in range(np.uint64(3 * width)):
                line[j] = source[start + j]
            for p in range(0, m, QUAD):
                quad(ring, slots[row] + p, m, line, starts, spread, p, groups)
        done = first_y[o] + taps
        to = out_h - 1 - o if upside_down else o
        for c in range(3):
            for k in range(taps):
                places[k] = slots[first_y[o] + k] + c * m
            at = (c * out_h + to) * out_w
            weighted_sum(flat, at, out_w, ring, places, weights_y[o])
            for j in range(np.uint64(out_w)):
                i = np.uint64(at) + j
                flat[i] = min(max(flat[i] * f32(1 / 255), f32(0)), f32(1))


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
def reflect(i: int, n: int) -> int:
    """The index that stands for i beyond a border; the border pixel itself is not repeated."""
    i = abs(i)
    return max(0, 2 * (n - 1) - i) if i >= n else i


@kernel
def blur(image: Image, weights_y: Image, weights_x: Image) -> None:
    """Symmetric weights of odd number around each pixel, reflecting at the border, in place."""
    _, height, width = image.shape
    pad_y, pad_x, rows = weights_y.size // 2, weights_x.size // 2, weights_y.size
    line, ring = np.empty(width + 2 * pad_x, np.float32), aligned(rows * width)
    slots = np.arange(height) % rows * width
    flat, places = image.reshape(image.size), np.empty(rows, np.int64)
    along = np.arange(weights_x.size)
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
                weighted_sum(ring, slots[row], width, line, along, weights_x)
                done = row + 1
            for k in range(rows):
                places[k] = slots[reflect(i + k - pad_y, height)]
            at = (c * height + i) * width
            weighted_sum(flat, at, width, ring, places, weights_y)
