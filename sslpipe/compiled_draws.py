"""Keyed draws by a compiled loop (philox_loop.py), which takes a twentieth of NumPy's time.

Only a process that has called `prepare` draws by it, where numba is installed; others, such as
workers, need not wait for the loop. The numbers are NumPy's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from ctypes import c_bool, c_int64, c_void_p
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
NAME = "sslpipe_philox"
ARGUMENTS = (
    c_void_p, c_void_p, c_int64, c_void_p, c_void_p, c_void_p, c_int64, c_void_p, c_bool
)  # fmt: skip
LOOP: list[Callable[..., None]] = []  # the one, once it is loaded


def prepare() -> None:
    """Load the loop, after compiling it unless that was done on this machine: 1 s of CPU."""

    def compiled() -> str:
        from . import philox_loop  # numba is behind it

        return philox_loop.compiled()

    if LOOP or find_spec("numba") is None:
        return
    from . import machine_code

    sources = [Path(__file__).with_name(name) for name in ("philox.py", "philox_loop.py")]
    found = machine_code.lasting_function(NAME, sources, compiled, ARGUMENTS)
    LOOP.extend([found] if found else [])


def fill_draws(
    made: npt.NDArray[Any], blocks: U64, streams: U64, views: U64, ids: U64, keys: U64
) -> None:
    """Draw the four words of n blocks into `made`, (4 n, ...): uint64, or uniforms as float64.

    Counters are made of blocks and streams, (n,), and of views and ids: block, stream << 16 | view,
    low and high word of the id. Views, ids and keys, of two words, are broadcast to (...).
    """
    shape, uniform = made.shape[1:], made.dtype == np.float64
    each = (np.broadcast_to(one, shape) for one in (views, ids, keys))
    arrays = blocks, streams << np.uint64(16), *map(np.ascontiguousarray, each), made
    *told, out = (array.__array_interface__["data"][0] for array in arrays)
    LOOP[0](*told[:2], len(blocks), *told[2:], math.prod(shape), out, uniform)
