"""Inner loops in LLVM's vectors, which it does not find in scalar code: see `cpu_filters`."""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

LANES = 16  # floats of a vector; LLVM makes several of one where the machine's are shorter
ROWS = 8  # rows side by side, a lane each; a square of theirs is as many columns
QUAD = 4  # lanes that shuffles are cheap in, and pixels whose sums fit the registers
AHEAD = 4  # rows from which the memory is asked for a row
FLOATS = ir.VectorType(ir.FloatType(), LANES)
COLUMN = ir.VectorType(ir.FloatType(), ROWS)
PART = ir.VectorType(ir.FloatType(), QUAD)
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

    def ask(self, array: int, index: Any) -> None:
        """Have the memory fetch an element; it may lie anywhere, as nothing is loaded."""
        word, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, word, word, word])
        fetch = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0i8")
        place = self.builder.bitcast(self.cell(array, index), pointer)
        self.builder.call(fetch, [place, word(0), word(3), word(1)])  # data to read, close by

    def pick(self, low: Any, high: Any, lanes: Sequence[int]) -> Any:
        """The chosen lanes of two vectors; those of the second count on from the first's."""
        mask = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), list(lanes))
        return self.builder.shuffle_vector(low, high, mask)

    def splat(self, value: Any, kind: Any) -> Any:
        """Put one float into all lanes of a vector."""
        empty = ir.Constant(kind, ir.Undefined)
        first = self.builder.insert_element(empty, value, ir.IntType(32)(0))
        return self.pick(first, first, [0] * kind.count)

    def zeros(self, count: int, kind: Any) -> list[Any]:
        """Sums to accumulate into; LLVM keeps them in registers."""
        zero = ir.Constant(kind, [0.0] * kind.count)
        return [cgutils.alloca_once_value(self.builder, zero) for _ in range(count)]

    def accumulate(self, sums: Any, values: Any, weights: Any) -> None:
        product = self.builder.fmul(values, weights, flags=("fast",))
        total = self.builder.fadd(self.builder.load(sums), product, flags=("fast",))
        self.builder.store(total, sums)

    def turn(self, vectors: Sequence[Any]) -> list[Any]:
        """Transpose each 4 x 4 numbers of four columns: [i] has the rows i and i + 4."""
        pairs = [0, ROWS, 1, ROWS + 1], [2, ROWS + 2, 3, ROWS + 3]
        wholes = [0, 1, ROWS, ROWS + 1], [2, 3, ROWS + 2, ROWS + 3]
        a, b, c, d = vectors
        left = [self.pick(a, b, both_halves(lanes)) for lanes in pairs]
        right = [self.pick(c, d, both_halves(lanes)) for lanes in pairs]
        two = zip(left, right, strict=True)
        return [self.pick(x, y, both_halves(lanes)) for x, y in two for lanes in wholes]


def both_halves(lanes: Sequence[int]) -> list[int]:
    """The same lanes of the lower and of the upper four."""
    return [start + lane for start in range(0, ROWS, QUAD) for lane in lanes]


@intrinsic  # type: ignore[untyped-decorator]
def bytes_as_floats(
    typing: Any, target: Any, to: Any, source: Any, at: Any, count: Any, ahead: Any
) -> tuple[Any, Any]:
    """target[to:] = source[at:], `count` vectors of bytes; asks for source[at + ahead:], too."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit, integer = Emitter(context, builder, signature, args), args[1].type
        _, to, _, at, count, ahead = args
        with cgutils.for_range(builder, count) as loop:
            step = builder.mul(loop.index, integer(LANES))
            place = builder.add(at, step)
            emit.ask(2, builder.add(place, ahead))
            values = builder.uitofp(emit.load(2, place, BYTES), FLOATS)
            emit.store(values, 0, builder.add(to, step))
        return context.get_dummy_value()

    number = types.intp
    return types.void(target, number, source, number, number, number), generate


@intrinsic  # type: ignore[untyped-decorator]
def columns(typing: Any, target: Any, to: Any, source: Any, at: Any, pitch: Any) -> tuple[Any, Any]:
    """Four columns of ROWS rows: target[to + ROWS * j + r] = source[at + pitch * r + j]."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit, integer = Emitter(context, builder, signature, args), args[1].type
        _, to, _, at, pitch = args
        places = [builder.add(at, builder.mul(pitch, integer(row))) for row in range(ROWS)]
        rows = [emit.load(2, place, PART) for place in places]
        halves = zip(rows[:QUAD], rows[QUAD:], strict=True)
        for j, values in enumerate(emit.turn([emit.pick(*two, range(ROWS)) for two in halves])):
            emit.store(values, 0, builder.add(to, integer(ROWS * j)))
        return context.get_dummy_value()

    number = types.intp
    return types.void(target, number, source, number, number), generate


def quad(emit: Emitter, integer: Any, o: Any, taps: Any) -> list[list[Any]]:
    """Weighted sums of the columns of QUAD output pixels, [pixel][channel]: see `square`."""
    build = emit.builder
    outputs = [build.add(o, integer(i)) for i in range(QUAD)]
    begins = [build.load(emit.cell(4, output)) for output in outputs]
    sums = [emit.zeros(3, COLUMN) for _ in outputs]
    with cgutils.for_range(build, taps) as loop:
        shift = build.mul(loop.index, integer(3 * ROWS))
        for output, begin, into in zip(outputs, begins, sums, strict=True):
            at = build.add(build.mul(output, taps), loop.index)
            weight = emit.splat(build.load(emit.cell(5, at)), COLUMN)
            for c in range(3):
                place = build.add(build.add(begin, shift), integer(ROWS * c))
                emit.accumulate(into[c], emit.load(3, place, COLUMN), weight)
    return [[build.load(into[c]) for c in range(3)] for into in sums]


@intrinsic  # type: ignore[untyped-decorator]
def square(
    typing: Any, target: Any, to: Any, pitch: Any, source: Any, starts: Any, weights: Any, o: Any,
    taps: Any,
) -> tuple[Any, Any]:  # fmt: skip
    """ROWS output pixels of ROWS rows, from o on: weighted sums of pixels of `columns`.

    starts: per output pixel, where its first column begins in source. weights: `taps` of each.
    Goes to target[to + pitch * (ROWS * channel + row) + pixel].
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit, integer = Emitter(context, builder, signature, args), args[1].type
        _, to, pitch, _, _, _, o, taps = args
        left = quad(emit, integer, o, taps)
        right = quad(emit, integer, builder.add(o, integer(QUAD)), taps)
        for c in range(3):
            low, high = (emit.turn([pixel[c] for pixel in half]) for half in (left, right))
            for row in range(ROWS):
                lanes = range(row // QUAD * QUAD, row // QUAD * QUAD + QUAD)
                both = [*lanes, *[ROWS + lane for lane in lanes]]
                line = builder.mul(pitch, integer(ROWS * c + row))
                values = emit.pick(low[row % QUAD], high[row % QUAD], both)
                emit.store(values, 0, builder.add(to, line))
        return context.get_dummy_value()

    number = types.intp
    return types.void(target, number, number, source, starts, weights, number, number), generate


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def block(
    typing: Any, target: Any, to: Any, source: Any, at: Any, places: Any, weights: Any, taps: Any,
    count: Any,
) -> tuple[Any, Any]:  # fmt: skip
    """`count` vectors of `weighted_sum` at once, in registers: target[to:], source[place + at:]."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emit, integer = Emitter(context, builder, signature, args), args[1].type
        _, to, _, at, _, _, taps, _ = args
        sums = emit.zeros(count.literal_value, FLOATS)
        with cgutils.for_range(builder, taps) as loop:
            begin = builder.add(at, builder.load(emit.cell(4, loop.index)))
            weight = emit.splat(builder.load(emit.cell(5, loop.index)), FLOATS)
            for i, into in enumerate(sums):
                place = builder.add(begin, integer(i * LANES))
                emit.accumulate(into, emit.load(2, place, FLOATS), weight)
        for i, into in enumerate(sums):
            emit.store(builder.load(into), 0, builder.add(to, integer(i * LANES)))
        return context.get_dummy_value()

    number = types.intp
    return types.void(target, number, source, number, places, weights, number, count), generate
