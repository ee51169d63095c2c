"""How the loops of the `cpu` executor are compiled.

numba keeps machine code on disk and knows it by the date of the kernel's own file: a kernel and all
kernels that it calls must stand in one file, or a change would go unseen.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.float32]
F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """Compile on the first call and keep the result on disk.

    numba writes to NUMBA_CACHE_DIR, else beside this file, else to the user's cache; where none can
    be written it compiles anew in each process.
    """
    settings = {"nogil": True, "fastmath": True, "error_model": "numpy"}
    try:
        return cast(F, numba.njit(cache=True, **settings)(function))
    except RuntimeError:
        return cast(F, numba.njit(**settings)(function))
