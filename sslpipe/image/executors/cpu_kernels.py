"""The loops of the `cpu` executor, compiled by numba: one view at a time, in place, without the GIL.

An image is (3, h, w) float32, C-contiguous, 600 KB at 224 px: it stays in the L2 cache from the
crop to the last op. Loops are written so that LLVM vectorises them: contiguous planes, no indexed
loads. numba keeps the machine code on disk and knows it by this file's date alone, so a kernel and
all that it calls stand in this file.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

Image = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
F = TypeVar("F", bound=Callable[..., Any])
f32 = np.float32

ROWS = 32  # output rows resampled together; a multiple of LANES, 16 to 64 time alike
LANES = 8  # floats of a vector that every machine handles well


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


@intrinsic  # type: ignore[untyped-decorator]
def transpose(
    typing: Any, target: Any, to: Any, to_step: Any, source: Any, at: Any, step: Any
) -> tuple[Any, Any]:
    """Transpose a block of 8 x 8 floats between flat arrays: three rounds of vector shuffles.

    Row r of the block starts at `at + r * step` in source, at `to + r * to_step` in target. Plain
    loops take four times as long, which was half of the whole crop.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        target, to, to_step, source, at, step = args
        vector = ir.VectorType(ir.FloatType(), LANES)

        def row(array: Any, kind: Any, start: Any, step: Any, r: int) -> Any:
            data = context.make_array(kind)(context, builder, array).data
            offset = builder.add(start, builder.mul(step, ir.Constant(step.type, r)))
            return builder.bitcast(builder.gep(data, [offset]), vector.as_pointer())

        rows = [
            builder.load(row(source, signature.args[3], at, step, r), align=4) for r in range(LANES)
        ]
        for half in (4, 2, 1):  # swap the off-diagonal quarters of ever smaller blocks
            low = [i + (LANES - half if i & half else 0) for i in range(LANES)]
            high = [i + (LANES if i & half else half) for i in range(LANES)]
            for r in (r for r in range(LANES) if not r & half):
                pair = rows[r], rows[r + half]
                rows[r], rows[r + half] = (
                    builder.shuffle_vector(
                        *pair, ir.Constant(ir.VectorType(ir.IntType(32), LANES), mask)
                    )
                    for mask in (low, high)
                )
        for r, value in enumerate(rows):
            builder.store(value, row(target, signature.args[0], to, to_step, r), align=4)
        return context.get_dummy_value()

    return types.void(target, types.intp, types.intp, source, types.intp, types.intp), generate


@kernel
def weighted_sum(target: Image, source: Any, start: int, step: int, weights: Image) -> None:
    """target[j] = sum over k of weights[k] * source[start + k * step + j], of flat arrays.

    Both passes of a resample and of a blur are this; four taps at a time spare loads and stores.
    """
    n, taps = target.size, weights.size
    a = source[start : start + n]
    for j in range(n):
        target[j] = weights[0] * f32(a[j])
    k = 1
    while k + 4 <= taps:
        at = start + k * step
        a, b = source[at : at + n], source[at + step : at + step + n]
        at += 2 * step
        c, d = source[at : at + n], source[at + step : at + step + n]
        wa, wb, wc, wd = weights[k], weights[k + 1], weights[k + 2], weights[k + 3]
        for j in range(n):
            target[j] += wa * f32(a[j]) + wb * f32(b[j]) + wc * f32(c[j]) + wd * f32(d[j])
        k += 4
    while k < taps:
        a = source[start + k * step : start + k * step + n]
        for j in range(n):
            target[j] += weights[k] * f32(a[j])
        k += 1


@kernel
def tap(distance: float, cubic: bool, a: float) -> float:
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
def axis(
    length: int, size: int, cubic: bool, antialias: bool, mirror: bool
) -> tuple[I64, Image]:
    """Resampling of one axis as torch does it: the first source index and the (size, K) weights.

    Antialiased: a filter as wide as the step between outputs, cut at the border and normalised, the
    cubic with a = -0.5. Otherwise: a = -0.75, and the border pixel stands for those beyond it.
    In float32, as in torch: the weights then agree to rounding.
    """
    scale = f32(length) / f32(size)
    stretch = max(f32(1), scale) if antialias else f32(1)
    reach = stretch * (f32(2) if cubic else f32(1))
    a = f32(-0.5) if antialias else f32(-0.75)
    taps = min(int(np.ceil(reach)) * 2 + 1, length)
    first, weights = np.empty(size, np.int64), np.zeros((size, taps), np.float32)
    for o in range(size):
        center = scale * (f32(size - 1 - o if mirror else o) + f32(0.5))
        low, high = int(np.floor(center - reach + f32(0.5))), int(np.floor(center + reach + f32(0.5)))
        first[o] = min(max(low, 0), length - taps)
        total = f32(0)
        for i in range(low, high):
            if antialias and (i < 0 or i >= length):
                continue
            weight = tap((f32(i) - center + f32(0.5)) / stretch, cubic, a)
            k = min(max(i, 0), length - 1) - first[o]
            weights[o, min(max(k, 0), taps - 1)] += weight
            total += weight
        weights[o] /= total
    return first, weights


@kernel
def resample(
    canvas: U8,
    x: int,
    y: int,
    width: int,
    height: int,
    mirror: tuple[bool, bool],
    cubic: bool,
    antialias: bool,
    image: Image,
) -> None:
    """Cut the box out of the canvas, resize it to the image, [0, 255] to [0, 1], clamped.

    ROWS output rows at a time: rows are summed down the canvas, the result is turned so that
    one pixel is 3 * ROWS neighbouring floats, these are summed along x, and turned back.
    mirror: (up and down, left and right).
    """
    out_h, out_w = image.shape[1], image.shape[2]
    first_y, weights_y = axis(height, out_h, cubic, antialias, mirror[0])
    first_x, weights_x = axis(width, out_w, cubic, antialias, mirror[1])
    weights_y *= f32(1 / 255)
    source, stride = canvas.reshape(canvas.size), canvas.shape[1] * 3
    n = (3 * width + LANES - 1) // LANES * LANES
    m = (out_w + LANES - 1) // LANES * LANES
    lines, turned = np.zeros(ROWS * n, np.float32), np.empty(n * ROWS, np.float32)
    summed, plane = np.zeros(m * 3 * ROWS, np.float32), np.empty(ROWS * m, np.float32)
    pixel = 3 * ROWS
    for top in range(0, out_h, ROWS):
        rows = min(ROWS, out_h - top)
        for i in range(rows):
            start = (y + first_y[top + i]) * stride + 3 * x
            line = lines[i * n : i * n + 3 * width]
            weighted_sum(line, source, start, stride, weights_y[top + i])
        for i in range(0, ROWS, LANES):
            for j in range(0, n, LANES):
                transpose(turned, j * ROWS + i, ROWS, lines, i * n + j, n)
        for o in range(out_w):
            target = summed[o * pixel : (o + 1) * pixel]
            weighted_sum(target, turned, first_x[o] * pixel, pixel, weights_x[o])
        for c in range(3):
            for i in range(0, ROWS, LANES):
                for j in range(0, m, LANES):
                    transpose(plane, i * m + j, m, summed, (j * 3 + c) * ROWS + i, pixel)
            for i in range(rows):
                target, line = image[c, top + i], plane[i * m : i * m + out_w]
                for j in range(out_w):
                    target[j] = min(max(line[j], f32(0)), f32(1))


@kernel
def cut(canvas: U8, x: int, y: int, mirror: tuple[bool, bool], image: Image) -> None:
    """Cut a box of the image's size out of the canvas, zero outside it."""
    _, height, width = image.shape
    for i in range(height):
        row = y + (height - 1 - i if mirror[0] else i)
        for j in range(width):
            column = x + (width - 1 - j if mirror[1] else j)
            inside = 0 <= row < canvas.shape[0] and 0 <= column < canvas.shape[1]
            for c in range(3):
                image[c, i, j] = f32(canvas[row, column, c]) / f32(255) if inside else f32(0)


@kernel
def brightness(image: Image, factor: float) -> None:
    """Blend with black."""
    flat, f = image.reshape(image.size), f32(factor)
    for i in range(flat.size):
        flat[i] = min(max(flat[i] * f, f32(0)), f32(1))


@kernel
def contrast(image: Image, factor: float) -> None:
    """Blend with the mean grey of the image."""
    total = 0.0
    for row in range(image.shape[1]):
        r, g, b = image[0, row], image[1, row], image[2, row]
        part = f32(0)  # a row at a time in float32, the rows in float64
        for i in range(r.size):
            part += f32(0.299) * r[i] + f32(0.587) * g[i] + f32(0.114) * b[i]
        total += part
    flat, f = image.reshape(image.size), f32(factor)
    rest = f32(total / (image.shape[1] * image.shape[2])) * (f32(1) - f)
    for i in range(flat.size):
        flat[i] = min(max(flat[i] * f + rest, f32(0)), f32(1))


@kernel
def saturation(image: Image, factor: float) -> None:
    """Blend with the grey of each pixel; factor 0 is grayscale."""
    planes = image.reshape(3, image.size // 3)
    r, g, b, f = planes[0], planes[1], planes[2], f32(factor)
    for i in range(r.size):
        rest = (f32(0.299) * r[i] + f32(0.587) * g[i] + f32(0.114) * b[i]) * (f32(1) - f)
        r[i] = min(max(r[i] * f + rest, f32(0)), f32(1))
        g[i] = min(max(g[i] * f + rest, f32(0)), f32(1))
        b[i] = min(max(b[i] * f + rest, f32(0)), f32(1))


@kernel
def hue_channel(n: float, sextant: float, high: float, span: float) -> float:
    """One channel of HSV -> RGB: n is 5, 3, 1 for red, green, blue; sextant in [0, 6)."""
    k = n + sextant
    k = k - f32(6) if k >= f32(6) else k
    return high - span * min(max(min(k, f32(4) - k), f32(0)), f32(1))


@kernel
def hue(image: Image, turns: float) -> None:
    """Turn the hue; closed form, so that no HSV image is made."""
    planes = image.reshape(3, image.size // 3)
    r, g, b, shift = planes[0], planes[1], planes[2], f32(turns) * f32(6)
    for i in range(r.size):
        red, green, blue = r[i], g[i], b[i]
        high, low = max(red, max(green, blue)), min(red, min(green, blue))
        span = high - low
        scale = f32(1) / (span if span > f32(0) else f32(1))
        at_blue = f32(4) + (red - green) * scale
        at_green = f32(2) + (blue - red) * scale
        at = at_green if high == green else at_blue
        at = (green - blue) * scale if high == red else at
        at += shift
        at -= f32(6) * np.floor(at * f32(1 / 6))
        r[i] = hue_channel(f32(5), at, high, span)
        g[i] = hue_channel(f32(3), at, high, span)
        b[i] = hue_channel(f32(1), at, high, span)


@kernel
def solarize(image: Image, threshold: float) -> None:
    """Invert what is at or above the threshold."""
    flat, t = image.reshape(image.size), f32(threshold)
    for i in range(flat.size):
        flat[i] = f32(1) - flat[i] if flat[i] >= t else flat[i]


@kernel
def normalize(image: Image, channel: int, mean: float, std: float) -> None:
    """(x - mean) / std of one channel."""
    flat, m, scale = image[channel].reshape(image[channel].size), f32(mean), f32(1 / std)
    for i in range(flat.size):
        flat[i] = (flat[i] - m) * scale


@kernel
def gaussian(sigma: float, size: int) -> Image:
    """Normalised weights of an odd window, cut where less than 1e-6 of the whole lies beyond."""
    radius = min(size // 2, int(np.ceil(5 * sigma)))
    weights = np.ones(2 * radius + 1, np.float32)
    for t in range(1, radius + 1):
        weights[radius - t] = weights[radius + t] = np.exp(-0.5 * (t / sigma) ** 2)
    return weights / weights.sum()


@kernel
def reflect(i: int, n: int) -> int:
    """The index that stands for i beyond a border; the border pixel itself is not repeated."""
    i = abs(i)
    return max(0, 2 * (n - 1) - i) if i >= n else i


@kernel
def blur(image: Image, size_y: int, size_x: int, sigma: float) -> None:
    """Gaussian blur, reflecting at the border: down, then along each row while it is in L1."""
    _, height, width = image.shape
    weights_y, weights_x = gaussian(sigma, size_y), gaussian(sigma, size_x)
    pad_y, pad_x = weights_y.size // 2, weights_x.size // 2
    n = width + 2 * pad_x
    padded = np.empty((height + 2 * pad_y, n), np.float32)
    source, line = padded.reshape(padded.size), np.empty(n, np.float32)
    for c in range(3):
        for i in range(height + 2 * pad_y):
            row, from_row = padded[i], image[c, reflect(i - pad_y, height)]
            row[pad_x : pad_x + width] = from_row
            for j in range(pad_x):
                row[j] = from_row[reflect(j - pad_x, width)]
                row[n - 1 - j] = from_row[reflect(width + pad_x - 1 - j, width)]
        for i in range(height):
            weighted_sum(line, source, i * n, n, weights_y)
            weighted_sum(image[c, i], line, 0, 1, weights_x)
