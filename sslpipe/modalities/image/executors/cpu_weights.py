"""The weights of resampling and blur, which the loops of `cpu_filters` apply."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
f32 = np.float32
Image = npt.NDArray[np.float32]
F = TypeVar("F", bound=Callable[..., Any])


# numba keeps machine code on disk and knows it by the date of the kernel's own file: a kernel and
# all kernels that it calls must stand in one file, or a change would go unseen
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


@kernel
def tap(distance: f32, cubic: bool, a: f32) -> f32:
    """The triangle, or Keys' cubic with parameter a."""
    t = abs(distance)
    if not cubic:
        return max(f32(0), f32(1) - t)
    if t < 1:
        return ((a + f32(2)) * t - (a + f32(3))) * t * t + f32(1)
    if t < 2:
        return (((t - f32(5)) * t + f32(8)) * t - f32(4)) * a
    return f32(0)


@kernel
def axis(length: int, size: int, cubic: bool, antialias: bool, mirror: bool) -> tuple[I64, Image]:
    """Resampling of one axis as torch does it: the first source index and the (size, K) weights.

    Antialiased: a filter as wide as the step between outputs, cut at the border and normalised, the
    cubic with a = -0.5. Otherwise: a = -0.75, and the border pixel stands for those beyond it.
    In float32, as in torch: the weights then agree to rounding.
    """
    scale = f32(length) / f32(size)
    stretch = max(f32(1), scale) if antialias else f32(1)
    reach = stretch * (f32(2) if cubic else f32(1))
    a = f32(-0.5) if antialias else f32(-0.75)
    taps = min(int(np.ceil(f32(2) * reach)), length)
    first, weights = np.empty(size, np.int64), np.zeros((size, taps), np.float32)
    for o in range(size):
        center = scale * (f32(size - 1 - o if mirror else o) + f32(0.5))
        low = int(np.floor(center - reach + f32(0.5)))
        high = int(np.floor(center + reach + f32(0.5)))
        first[o] = min(max(low, 0), length - taps)
        total = f32(0)
        for i in range(low, high):
            if antialias and (i < 0 or i >= length):
                continue
            weight = tap((f32(i) - center + f32(0.5)) / stretch, cubic, a)
            k = min(max(i, 0), length - 1) - first[o]
            weights[o, min(max(k, 0), taps - 1)] += weight
            total += weight
        for k in range(taps):  # numba's operators on arrays cost as much as all else here
            weights[o, k] /= total
    return first, weights


@kernel
def gaussian(sigma: float, size: int) -> Image:
    """Normalised weights of an odd window, cut where less than 1e-6 of the whole lies beyond."""
    radius = min(size // 2, int(np.ceil(5 * sigma)))
    weights = np.ones(2 * radius + 1, np.float32)
    for t in range(1, radius + 1):
        weights[radius - t] = weights[radius + t] = np.exp(-0.5 * (t / sigma) ** 2)
    weights /= weights.sum()
    return weights
