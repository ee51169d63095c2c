"""The weights of resampling and blur, which the loops of `cpu_filters` apply."""

import numpy as np
import numpy.typing as npt

from ..kernels import kernel

I64 = npt.NDArray[np.int64]
f32 = np.float32
Image = npt.NDArray[np.float32]


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
def reach_of(length: int, size: int, cubic: bool, antialias: bool) -> f32:
    """How far from its centre an output pixel looks, in source pixels."""
    stretch = max(f32(1), f32(length) / f32(size)) if antialias else f32(1)
    return stretch * (f32(2) if cubic else f32(1))


@kernel
def taps_of(length: int, size: int, cubic: bool, antialias: bool) -> int:
    """Weights that `axis` needs for one output pixel."""
    return min(int(np.ceil(f32(2) * reach_of(length, size, cubic, antialias))), length)


@kernel
def axis(
    length: int, cubic: bool, antialias: bool, mirror: bool, first: I64, weights: Image
) -> None:
    """Resampling of one axis as torch does it: the first source index and the (size, K) weights.

    Antialiased: a filter as wide as the step between outputs, cut at the border and normalised, the
    cubic with a = -0.5. Otherwise: a = -0.75, and the border pixel stands for those beyond it.
    In float32, as in torch: the weights then agree to rounding. K: `taps_of`.
    """
    size, taps = weights.shape
    scale = f32(length) / f32(size)
    stretch = max(f32(1), scale) if antialias else f32(1)
    reach = reach_of(length, size, cubic, antialias)
    a = f32(-0.5) if antialias else f32(-0.75)
    for o in range(size):
        center = scale * (f32(size - 1 - o if mirror else o) + f32(0.5))
        low = int(np.floor(center - reach + f32(0.5)))
        high = int(np.floor(center + reach + f32(0.5)))
        first[o] = min(max(low, 0), length - taps)
        for k in range(taps):
            weights[o, k] = f32(0)
        total = f32(0)
        for i in range(low, high):
            if antialias and (i < 0 or i >= length):
                continue
            weight = tap((f32(i) - center + f32(0.5)) / stretch, cubic, a)
            k = min(max(i, 0), length - 1) - first[o]
            weights[o, min(max(k, 0), taps - 1)] += weight
            total += weight
        for k in range(taps):
            weights[o, k] /= total


@kernel
def radius_of(sigma: float, size: int) -> int:
    """Half of a blur's window of `size`, cut where less than 1e-6 of the whole lies beyond."""
    return min(size // 2, int(np.ceil(5 * sigma)))


@kernel
def gaussian(sigma: float, weights: Image) -> None:
    """Normalised weights of an odd window; `radius_of` says how many count."""
    radius, total = weights.size // 2, f32(0)
    for k in range(weights.size):
        weights[k] = f32(np.exp(-0.5 * ((k - radius) / sigma) ** 2))
        total += weights[k]
    for k in range(weights.size):
        weights[k] /= total
