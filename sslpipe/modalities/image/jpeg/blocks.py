"""Blocks of coefficients to pixels: libjpeg's inverse DCT "islow" in vectors. Needs numba.

C. Loeffler, A. Ligtenberg, G. Moschytz (1989): twelve multiplications for eight numbers, here of
eight columns at once, then of eight rows. The arithmetic is that of libjpeg-turbo's jidctint.c, bit
for bit, as long as coefficients and sums stay within LARGEST.
"""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .layout import LARGEST

SHORT, INT = ir.IntType(16), ir.IntType(32)
SHORTS, INTS, BYTES = (ir.VectorType(ir.IntType(bits), 8) for bits in (16, 32, 8))
FIXED, PASS = 13, 2  # bits behind the point of constants, and of what the first pass leaves


class Dct:
    """Writes LLVM code for vectors of eight int32."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def all(self, value: int) -> Any:
        return ir.Constant(INTS, [value] * 8)

    def times(self, vector: Any, constant: int) -> Any:
        return self.builder.mul(vector, self.all(constant))

    def sum(self, *vectors: Any) -> Any:
        total = vectors[0]
        for vector in vectors[1:]:
            total = self.builder.add(total, vector)
        return total

    def minus(self, left: Any, right: Any) -> Any:
        return self.builder.sub(left, right)

    def even(self, c: Sequence[Any]) -> list[Any]:
        """Of the coefficients 0, 2, 4 and 6."""
        z1 = self.times(self.sum(c[2], c[6]), 4433)
        t2, t3 = self.sum(z1, self.times(c[6], -15137)), self.sum(z1, self.times(c[2], 6270))
        bits = self.all(FIXED)
        t0 = self.builder.shl(self.sum(c[0], c[4]), bits)
        t1 = self.builder.shl(self.minus(c[0], c[4]), bits)
        return [self.sum(t0, t3), self.sum(t1, t2), self.minus(t1, t2), self.minus(t0, t3)]

    def odd(self, c: Sequence[Any]) -> list[Any]:
        """Of the coefficients 1, 3, 5 and 7."""
        t0, t1, t2, t3 = c[7], c[5], c[3], c[1]
        z5 = self.times(self.sum(t0, t2, t1, t3), 9633)
        z1 = self.times(self.sum(t0, t3), -7373)
        z2 = self.times(self.sum(t1, t2), -20995)
        z3 = self.sum(self.times(self.sum(t0, t2), -16069), z5)
        z4 = self.sum(self.times(self.sum(t1, t3), -3196), z5)
        return [
            self.sum(self.times(t3, 12299), z1, z4),
            self.sum(self.times(t2, 25172), z2, z3),
            self.sum(self.times(t1, 16819), z2, z4),
            self.sum(self.times(t0, 2446), z1, z3),
        ]

    def inverse(self, coefficients: Sequence[Any], drop: int) -> list[Any]:
        """Eight sums, rounded by leaving out their last `drop` bits."""
        even, odd = self.even(coefficients), self.odd(coefficients)
        sums = [self.sum(e, o) for e, o in zip(even, odd, strict=True)]
        others = [self.minus(e, o) for e, o in zip(even, odd, strict=True)]
        half, bits = self.all(1 << drop - 1), self.all(drop)
        return [self.builder.ashr(self.sum(x, half), bits) for x in [*sums, *others[::-1]]]

    def transposed(self, rows: Sequence[Any]) -> list[Any]:
        """Eight vectors of eight, rows for columns: three rounds that interleave two of them."""
        for _ in range(3):
            low = [lane // 2 + 8 * (lane % 2) for lane in range(8)]
            masks = [ir.Constant(INTS, [lane + half for lane in low]) for half in (0, 4)]
            rows = [
                self.builder.shuffle_vector(rows[i], rows[i + 4], mask)
                for i in range(4)
                for mask in masks
            ]
        return list(rows)


def dequantised(dct: Dct, coefficients: Any, quants: Any) -> list[Any]:
    """Eight rows of int16 times int16, as int32."""
    builder, rows = dct.builder, []
    for row in range(8):
        pair = []
        for data in (coefficients, quants):
            place = builder.gep(data, [ir.IntType(64)(8 * row)])
            vector = builder.load(builder.bitcast(place, SHORTS.as_pointer()), align=2)
            pair.append(builder.sext(vector, INTS))
        rows.append(builder.mul(*pair))
    return rows


def clamped(builder: Any, vector: Any) -> Any:
    """int32 with 128 to be added -> uint8."""
    moved = builder.add(vector, ir.Constant(INTS, [128] * 8))
    zero, most = ir.Constant(INTS, [0] * 8), ir.Constant(INTS, [255] * 8)
    low = builder.select(builder.icmp_signed(">", moved, zero), moved, zero)
    return builder.trunc(builder.select(builder.icmp_signed("<", low, most), low, most), BYTES)


@intrinsic  # type: ignore[untyped-decorator]
def inverse_dct(
    typing: Any, coefficients: Any, quants: Any, plane: Any, to: Any, pitch: Any
) -> tuple[Any, Any]:
    """Pixels of a block to plane[to + pitch * row:]; not 0 where a sum is beyond LARGEST."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        dct = Dct(builder)
        data = [
            context.make_array(kind)(context, builder, arg).data
            for kind, arg in zip(signature.args[:3], args[:3], strict=True)
        ]
        once = dct.inverse(dequantised(dct, *data[:2]), FIXED - PASS)
        beyond = dct.all(0)
        for row in once:  # of LARGEST + 1 more, the sign or a bit above it shows
            beyond = builder.or_(beyond, builder.add(row, dct.all(LARGEST + 1)))
        columns = dct.transposed([builder.trunc(row, SHORTS) for row in once])
        twice = dct.inverse([builder.sext(c, INTS) for c in columns], FIXED + PASS + 3)
        pixels = dct.transposed([clamped(builder, column) for column in twice])
        for row, vector in enumerate(pixels):
            at = builder.add(args[3], builder.mul(args[4], args[4].type(row)))
            place = builder.bitcast(builder.gep(data[2], [at]), BYTES.as_pointer())
            builder.store(vector, place, align=1)
        high = builder.and_(beyond, dct.all(-2 * (LARGEST + 1)))
        return builder.bitcast(builder.icmp_signed("!=", high, dct.all(0)), ir.IntType(8))

    number = types.int64
    return types.uint8(coefficients, quants, plane, number, number), generate
