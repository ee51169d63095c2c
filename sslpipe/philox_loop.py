"""The generator of philox.py as one loop, from ids of samples to uniforms: what is compiled.

Needs numba. Only a process that compiles imports this file.
"""

from typing import Any

import numba
import numpy as np
from numba import carray, types

from .philox import M0, M1, MASK, ROUNDS, W0, W1

Pointer = Any  # of numba's kind
NAME = "sslpipe_philox"
u64 = np.uint64
m0, m1, w0, w1, low, half, rest = map(u64, (M0, M1, W0, W1, MASK, 32, 8))
pointer, number = types.CPointer(types.uint64), types.int64
SIGNATURE = types.void(
    pointer, pointer, number, pointer, pointer, pointer, number, types.voidptr, types.boolean
)


def draws(
    blocks: Pointer, streams: Pointer, count: int, views: Pointer, ids: Pointer, keys: Pointer,
    size: int, out: Pointer, uniform: bool,
) -> None:  # fmt: skip
    """What `compiled_draws.fill_draws` says; a block takes 2 ns, in NumPy 50."""
    words, uniforms = carray(out, (count, 4, size), u64), carray(out, (count, 4, size), np.float64)
    for n in range(count):
        block, stream = blocks[n], streams[n]  # read once: else it does not become vectors
        for e in range(size):
            c0, c1, c2, c3 = block, stream | views[e], ids[e] & low, ids[e] >> half
            k0, k1 = keys[e] & low, keys[e] >> half
            for _ in range(ROUNDS):
                p0, p1 = c0 * m0, c2 * m1
                c0, c1, c2, c3 = p1 >> half ^ c1 ^ k0, p1 & low, p0 >> half ^ c3 ^ k1, p0 & low
                k0, k1 = k0 + w0 & low, k1 + w1 & low
            words[n, 0, e], words[n, 1, e], words[n, 2, e], words[n, 3, e] = c0, c1, c2, c3
        if uniform:
            for word in range(4):
                for e in range(size):
                    uniforms[n, word, e] = (
                        np.float64(np.int64(words[n, word, e] >> rest)) * 2.0**-24
                    )


def compiled() -> str:
    """The LLVM code of `draws` for this machine, under the name NAME."""
    made = numba.cfunc(SIGNATURE, nogil=True, error_model="numpy")(draws)
    return str(made.inspect_llvm()).replace(made.native_name, NAME)
