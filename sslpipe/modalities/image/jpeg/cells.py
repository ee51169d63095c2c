"""Access to memory without checks and without Python's rule for negative indices. Needs numba."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

WORD = ir.IntType(64)
BLOCK = ir.VectorType(ir.IntType(16), 64)


def cell(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Pointer to the element args[1] of the array args[0]."""
    data = context.make_array(signature.args[0])(context, builder, args[0]).data
    return builder.gep(data, [args[1]])


@intrinsic  # type: ignore[untyped-decorator]
def get(typing: Any, array: Any, index: Any) -> tuple[Any, Any]:
    """array[index], an integer of any type, as int64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = builder.load(cell(context, builder, signature, args))
        return context.cast(builder, value, array.dtype, types.int64)

    return types.int64(array, index), generate


@intrinsic  # type: ignore[untyped-decorator]
def at_address(typing: Any, number: Any) -> tuple[Any, Any]:
    """The memory at an address, for `carray`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def put(typing: Any, array: Any, index: Any, value: Any) -> tuple[Any, Any]:
    """array[index] = the low bits of value."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = context.cast(builder, args[2], types.int64, array.dtype)
        builder.store(value, cell(context, builder, signature, args))
        return context.get_dummy_value()

    return types.void(array, index, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def word(typing: Any, array: Any, index: Any) -> tuple[Any, Any]:
    """The 8 bytes from index on, the first of them lowest, as int64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.bitcast(cell(context, builder, signature, args), WORD.as_pointer())
        return builder.load(place, align=1)

    return types.int64(array, index), generate


@intrinsic  # type: ignore[untyped-decorator]
def put_word(typing: Any, array: Any, index: Any, value: Any) -> tuple[Any, Any]:
    """Store what `word` loads."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.bitcast(cell(context, builder, signature, args), WORD.as_pointer())
        builder.store(args[2], place, align=1)
        return context.get_dummy_value()

    return types.void(array, index, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def reverse(typing: Any, value: Any) -> tuple[Any, Any]:
    """The 8 bytes in the opposite order, as uint64: bits in the order of a stream."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bswap(args[0])

    return types.uint64(types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def clear(typing: Any, coefficients: Any) -> tuple[Any, Any]:
    """Zero the first 64 elements of an array of int16."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(coefficients)(context, builder, args[0]).data
        builder.store(ir.Constant(BLOCK, [0] * 64), builder.bitcast(data, BLOCK.as_pointer()), 2)
        return context.get_dummy_value()

    return types.void(coefficients), generate
