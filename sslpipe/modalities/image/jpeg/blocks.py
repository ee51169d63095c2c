"""Blocks of coefficients to pixels: libjpeg's inverse DCT "islow" in vectors. Needs numba.

C. Loeffler, A. Ligtenberg, G. Moschytz (1989): twelve multiplications for eight numbers, here of
eight columns at once, then of eight rows. The arithmetic is that of libjpeg-turbo's jidctint.c, bit
for bit, as long as coefficients and sums stay within LARGEST.
"""

import functools
from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .memory import LARGEST

SHORT, INT = ir.IntType(16), ir.IntType(32)
SHORTS, INTS, BYTES = (ir.VectorType(ir.IntType(bits), 8) for bits in (16, 32, 8))
LOW_PLACES = 10  # in zigzag order, all in the first four rows and columns
FIXED, PASS = 13, 2  # bits behind the point of constants, and of what the first pass leaves


class Dct:
    """Writes LLVM code for vectors of eight int32; None is one of zeros, which costs nothing."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def all(self, value: int) -> Any:
        return ir.Constant(INTS, [value] * 8)

    def times(self, vector: Any, constant: int) -> Any:
        return None if vector is None else self.builder.mul(vector, self.all(constant))

    def sum(self, *vectors: Any) -> Any:
        present = [vector for vector in vectors if vector is not None]
        return functools.reduce(self.builder.add, present) if present else None

    def minus(self, left: Any, right: Any) -> Any:
        return left if right is None else self.builder.sub(left, right)

    def shifted(self, vector: Any) -> Any:
        return None if vector is None else self.builder.shl(vector, self.all(FIXED))

    def even(self, c: Sequence[Any], rounding: int) -> list[Any]:
        """Of the coefficients 0, 2, 4 and 6; what rounds all sums is added here."""
        z1 = self.times(self.sum(c[2], c[6]), 4433)
        t2, t3 = self.sum(z1, self.times(c[6], -15137)), self.sum(z1, self.times(c[2], 6270))
        t0 = self.sum(self.shifted(self.sum(c[0], c[4])), self.all(rounding))
        t1 = self.sum(self.shifted(self.minus(c[0], c[4])), self.all(rounding))
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

    def inverse(self, coefficients: Sequence[Any], drop: int, plus: int = 0) -> list[Any]:
        """Eight sums, rounded by leaving out their last `drop` bits, and `plus` added."""
        even = self.even(coefficients, (plus << drop) + (1 << drop - 1))
        odd = self.odd(coefficients)
        sums = [self.sum(e, o) for e, o in zip(even, odd, strict=True)]
        others = [self.minus(e, o) for e, o in zip(even, odd, strict=True)]
        return [self.builder.ashr(x, self.all(drop)) for x in [*sums, *others[::-1]]]

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

    def dequantised(self, coefficients: Any, quants: Any, side: int) -> list[Any]:
        """Eight rows of int16 times int16, as int32; None from row `side` on."""
        rows: list[Any] = []
        for row in range(side):
            pair = []
            for data in (coefficients, quants):
                place = self.builder.gep(data, [ir.IntType(64)(8 * row)])
                vector = self.builder.load(
                    self.builder.bitcast(place, SHORTS.as_pointer()), align=2
                )
                pair.append(self.builder.sext(vector, INTS))
            rows.append(self.builder.mul(*pair))
        return rows + [None] * (8 - side)

    def clamped(self, vector: Any) -> Any:
        """int32 -> uint8."""
        build, zero, most = self.builder, self.all(0), self.all(255)
        low = build.select(build.icmp_signed(">", vector, zero), vector, zero)
        return build.trunc(build.select(build.icmp_signed("<", low, most), low, most), BYTES)

    def beyond(self, rows: Sequence[Any]) -> Any:
        """A byte that is not 0 where a number is above LARGEST."""
        moved = [self.builder.add(row, self.all(LARGEST + 1)) for row in rows]
        high = self.builder.and_(
            functools.reduce(self.builder.or_, moved), self.all(-2 * (LARGEST + 1))
        )
        differs = self.builder.icmp_signed("!=", high, self.all(0))
        return self.builder.bitcast(differs, ir.IntType(8))


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def inverse_dct(
    typing: Any, coefficients: Any, quants: Any, plane: Any, to: Any, pitch: Any, side: Any
) -> tuple[Any, Any]:
    """Pixels of a block to plane[to + pitch * row:]; not 0 where a sum is beyond LARGEST.

    side: how many rows and columns have coefficients, a literal.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        dct, count = Dct(builder), side.literal_value
        data = [
            context.make_array(kind)(context, builder, arg).data
            for kind, arg in zip(signature.args[:3], args[:3], strict=True)
        ]
        once = dct.inverse(dct.dequantised(data[0], data[1], count), FIXED - PASS)
        columns = dct.transposed([builder.trunc(row, SHORTS) for row in once])[:count]
        again = [builder.sext(c, INTS) for c in columns] + [None] * (8 - count)
        twice = dct.inverse(again, FIXED + PASS + 3, plus=128)
        for row, vector in enumerate(dct.transposed([dct.clamped(x) for x in twice])):
            at = builder.add(args[3], builder.mul(args[4], args[4].type(row)))
            place = builder.bitcast(builder.gep(data[2], [at]), BYTES.as_pointer())
            builder.store(vector, place, align=1)
        return dct.beyond(once)

    number = types.int64
    return types.uint8(coefficients, quants, plane, number, number, side), generate
