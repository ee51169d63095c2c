"""Uniforms by a compiled loop (philox_loop.py), which takes a twentieth of NumPy's time.

Only a process that has called `prepare` draws by it, where numba is installed; others, such as
workers, need not wait for the loop. The numbers are NumPy's.
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes import c_int64, c_void_p
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
NAME = "sslpipe_philox"
ARGUMENTS = c_void_p, c_void_p, c_int64, c_void_p, c_void_p, c_void_p, c_int64, c_void_p
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


def fill_uniforms(
    made: npt.NDArray[np.float64], blocks: U64, streams: U64, views: U64, ids: U64, keys: U64
) -> None:
    """Put uniforms of the four words of n blocks for ... elements into `made`, (4 n, ...).

    Counters are made of blocks and streams, (n,), and of views and ids, (...): they are block,
    stream | view, low and high word of the id. keys: (...), of two words. All are C-contiguous.
    """
    arrays = blocks, streams, views, ids, keys, made
    *told, out = (each.__array_interface__["data"][0] for each in arrays)
    LOOP[0](*told[:2], blocks.size, *told[2:], ids.size, out)
