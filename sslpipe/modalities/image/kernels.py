"""What compiled loops are made of: how they are compiled, and how they get at memory.

Needs numba. Only a process that compiles imports this file and those that import it.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["address", "carray", "claim", "flat", "inlined", "kernel", "release", "split"]

LINE = 64  # bytes of a cache line: loads across two take twice as long
POINTER, SIZE = ir.IntType(8).as_pointer(), ir.IntType(64)
SETTINGS: dict[str, Any] = {
    "nogil": True, "fastmath": True, "error_model": "numpy",
    "no_cpython_wrapper": True, "no_cfunc_wrapper": True,  # only kernels call kernels
}  # fmt: skip
F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """Have numba compile a function into those that call it.

    The processes that load the machine code have none of numba's library: a kernel may not make
    arrays (`claim` gets memory), reshape them or raise.
    """
    return cast(F, numba.njit(**SETTINGS)(function))


def inlined(function: F) -> F:
    """A kernel that becomes part of its caller: a call with five arrays costs 12 ns."""
    return cast(F, numba.njit(**SETTINGS, forceinline=True)(function))


@intrinsic  # type: ignore[untyped-decorator]
def claim(typing: Any, size: Any) -> tuple[Any, Any]:
    """At least `size` bytes from a cache line on, which `release` must be given."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(POINTER, [SIZE, SIZE])
        get = cgutils.get_or_insert_function(builder.module, kind, "aligned_alloc")
        lines = builder.udiv(builder.add(args[0], SIZE(LINE)), SIZE(LINE))
        return builder.call(get, [SIZE(LINE), builder.mul(lines, SIZE(LINE))])

    return types.voidptr(types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def release(typing: Any, memory: Any) -> tuple[Any, Any]:
    """Give memory back to the C library."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [POINTER])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "free"), args)
        return context.get_dummy_value()

    return types.void(types.voidptr), generate


@intrinsic  # type: ignore[untyped-decorator]
def address(typing: Any, array: Any) -> tuple[Any, Any]:
    """Pointer to an array's first element; `carray` makes an array of another shape of it.

    numba's `reshape` calls a function of its own library, which is not there.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.make_array(array)(context, builder, args[0]).data

    return types.CPointer(array.dtype)(array), generate


@kernel
def flat(array: Any) -> Any:
    """All elements of a contiguous array in a row."""
    return carray(address(array), array.size)


@kernel
def split(memory: Any, size: int) -> tuple[Any, Any]:
    """The first `size` elements, and the others."""
    return memory[:size], memory[size:]
