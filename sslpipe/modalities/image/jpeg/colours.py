"""Planes of Y, Cb and Cr to rows of RGB: libjpeg's "fancy" upsampling and its colours, in vectors.

A chroma sample that stands for two pixels of an axis gives each of them three quarters, its
neighbour on that side one quarter. Down the columns comes first, in 16 bits; the rounding of both
axes is that of jdsample.c, that of colours (BT.601, full range, 16 bits behind the point) that of
jdcolor.c. Needs numba.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..kernels import kernel
from .cells import get, put

U8 = npt.NDArray[np.uint8]
I16 = npt.NDArray[np.int16]

LANES = 16  # pixels of a vector; a step is of two
STEP = 2 * LANES  # pixels
AHEAD = 16  # of a row of chroma, before its first sample: its left neighbour
BYTE, SHORT, INT = (ir.IntType(bits) for bits in (8, 16, 32))
# times 2**16, without whole numbers: 1.402 Cr, 1.772 Cb, -0.34414 Cb - 0.71414 Cr
RED, BLUE, GREEN = 26_345, -14_942, (-22_554, 18_734)


def vector(element: Any, lanes: int) -> Any:
    return ir.VectorType(element, lanes)


class RowEmitter:
    """Writes LLVM code for vectors of LANES pixels; arrays are known by their place in `args`."""

    def __init__(self, context: Any, builder: Any, signature: Any, args: Any) -> None:
        self.context, self.builder, self.kinds, self.args = context, builder, signature.args, args

    def place(self, array: int, index: Any, kind: Any) -> Any:
        made = self.context.make_array(self.kinds[array])
        data = made(self.context, self.builder, self.args[array]).data
        return self.builder.bitcast(self.builder.gep(data, [index]), kind.as_pointer())

    def load(self, array: int, index: Any, element: Any) -> Any:
        return self.builder.load(self.place(array, index, vector(element, LANES)), align=1)

    def store(self, values: Any, array: int, index: Any) -> None:
        self.builder.store(values, self.place(array, index, values.type), align=1)

    def all(self, value: int, element: Any = INT) -> Any:
        return ir.Constant(vector(element, LANES), [value] * LANES)

    def splat(self, value: Any, element: Any) -> Any:
        """A number of the arguments in all lanes."""
        kind = vector(element, LANES)
        first = self.builder.insert_element(
            ir.Constant(kind, ir.Undefined), self.builder.trunc(value, element), INT(0)
        )
        return self.pick(first, first, [0] * LANES)

    def pick(self, left: Any, right: Any, lanes: Sequence[int]) -> Any:
        mask = ir.Constant(vector(INT, len(lanes)), list(lanes))
        return self.builder.shuffle_vector(left, right, mask)

    def sum(self, *values: Any) -> Any:
        total = values[0]
        for value in values[1:]:
            total = self.builder.add(total, value)
        return total

    def shifted(self, values: Any, bits: int, element: Any = SHORT) -> Any:
        return self.builder.ashr(values, self.all(bits, element))

    def times(self, values: Any, constant: int) -> Any:
        """int16 -> int32."""
        return self.builder.mul(self.builder.sext(values, vector(INT, LANES)), self.all(constant))

    def part(self, values: Any, constant: int) -> Any:
        """int16 times constant / 2**16, rounded: the upper half of a product is one instruction."""
        product = self.times(self.sum(values, values), constant)
        upper = self.builder.trunc(self.shifted(product, 16, INT), vector(SHORT, LANES))
        return self.shifted(self.sum(upper, self.all(1, SHORT)), 1)

    def clamped(self, values: Any) -> Any:
        """int16 -> uint8."""
        build, zero, most = self.builder, self.all(0, SHORT), self.all(255, SHORT)
        low = build.select(build.icmp_signed(">", values, zero), values, zero)
        least = build.select(build.icmp_signed("<", low, most), low, most)
        return build.trunc(least, vector(BYTE, LANES))

    def rgb(self, y: Any, cb: Any, cr: Any) -> list[Any]:
        """Three planes of uint8; cb, cr: int16, 128 off."""
        build = self.builder
        luma = build.zext(y, vector(SHORT, LANES))
        both = self.sum(self.times(cb, GREEN[0]), self.times(cr, GREEN[1]), self.all(1 << 15))
        green = build.trunc(self.shifted(both, 16, INT), vector(SHORT, LANES))
        return [
            self.clamped(self.sum(luma, cr, self.part(cr, RED))),
            self.clamped(self.sum(luma, build.sub(green, cr))),
            self.clamped(self.sum(luma, cb, cb, self.part(cb, BLUE))),
        ]

    def interleaved(self, planes: Sequence[Any]) -> Any:
        """Red, green, blue, red ..., 3 * LANES bytes."""
        two = self.pick(planes[0], planes[1], range(2 * LANES))
        three = self.pick(planes[2], planes[2], [i % LANES for i in range(2 * LANES)])
        lanes = [i // 3 + LANES * (i % 3) for i in range(3 * LANES)]
        return self.pick(two, three, lanes)


def doubled(pixels: RowEmitter, array: int, at: Any, settings: Sequence[Any]) -> list[Any]:
    """STEP samples from LANES + 2 sums of a row: a vector of the first half, and of the second."""
    build = pixels.builder
    here, before, after = (
        pixels.load(array, build.add(at, at.type(shift)), SHORT) for shift in (0, -1, 1)
    )
    down, left, right = (pixels.splat(value, SHORT) for value in settings)
    triple = build.mul(here, pixels.all(3, SHORT))
    even = build.ashr(build.add(build.add(triple, before), left), down)
    odd = build.ashr(build.add(build.add(triple, after), right), down)
    middle = pixels.all(128, SHORT)
    even, odd = build.sub(even, middle), build.sub(odd, middle)
    halves = (range(LANES // 2), range(LANES // 2, LANES))
    return [
        pixels.pick(even, odd, [i + LANES * o for i in half for o in (0, 1)]) for half in halves
    ]


@intrinsic  # type: ignore[untyped-decorator]
def doubled_row(
    typing: Any, out: Any, to: Any, luma: Any, at: Any, blue: Any, red: Any, count: Any, down: Any,
    left: Any, right: Any,
) -> tuple[Any, Any]:  # fmt: skip
    """`count` steps of STEP pixels to out[to:], of luma[at:] and two rows of sums of chroma.

    A sum thrice, its neighbour, and `left` for an even, `right` for an odd pixel, are divided by
    2**down.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pixels = RowEmitter(context, builder, signature, args)
        to, at, count, settings = args[1], args[3], args[6], args[7:]
        with cgutils.for_range(builder, count) as loop:
            chroma = builder.add(builder.mul(loop.index, to.type(LANES)), to.type(AHEAD))
            blues, reds = (doubled(pixels, array, chroma, settings) for array in (4, 5))
            for half in range(2):
                x = builder.add(builder.mul(loop.index, to.type(STEP)), to.type(LANES * half))
                y = pixels.load(2, builder.add(at, x), BYTE)
                made = pixels.interleaved(pixels.rgb(y, blues[half], reds[half]))
                pixels.store(made, 0, builder.add(to, builder.mul(x, to.type(3))))
        return context.get_dummy_value()

    n = types.int64
    return types.void(out, n, luma, n, blue, red, n, n, n, n), generate


@intrinsic  # type: ignore[untyped-decorator]
def plain_row(
    typing: Any, out: Any, to: Any, luma: Any, at: Any, blue: Any, red: Any, chroma: Any, count: Any
) -> tuple[Any, Any]:
    """`count` vectors of pixels to out[to:], where each has chroma of its own: blue[chroma:]."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pixels = RowEmitter(context, builder, signature, args)
        to, at, chroma, count = args[1], args[3], args[6], args[7]
        with cgutils.for_range(builder, count) as loop:
            x = builder.mul(loop.index, to.type(LANES))
            y = pixels.load(2, builder.add(at, x), BYTE)
            both = [
                builder.sub(
                    builder.zext(
                        pixels.load(array, builder.add(chroma, x), BYTE), vector(SHORT, LANES)
                    ),
                    pixels.all(128, SHORT),
                )
                for array in (4, 5)
            ]
            made = pixels.interleaved(pixels.rgb(y, *both))
            pixels.store(made, 0, builder.add(to, builder.mul(x, to.type(3))))
        return context.get_dummy_value()

    n = types.int64
    return types.void(out, n, luma, n, blue, red, n, n), generate


@kernel
def sums(plane: U8, near: int, far: int, thrice: int, once: int, width: int, row: I16) -> None:
    """Two rows of chroma, weighed: row[AHEAD:]. Its ends stand for what is beyond them.

    near, far: where the rows begin in the plane.
    """
    for x in range(np.uint64(width)):
        a, b = plane[np.uint64(near) + x], plane[np.uint64(far) + x]
        row[np.uint64(AHEAD) + x] = np.int16(np.int16(thrice) * a + np.int16(once) * b)
    put(row, AHEAD - 1, get(row, AHEAD))
    put(row, AHEAD + width, get(row, AHEAD + width - 1))
