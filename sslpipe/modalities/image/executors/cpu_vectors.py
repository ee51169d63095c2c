"""Two inner loops in LLVM's vectors, which it does not find in scalar code: see `cpu_filters`."""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

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
