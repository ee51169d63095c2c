"""Colour of one image, (3, h, w) float32 in [0, 1], in place: the loops of the `cpu` executor.

Each is one pass over contiguous planes, which LLVM vectorises, clamped as Kornia's function is.
"""

import numpy as np

from ..kernels import address, carray, flat, kernel
from .cpu_weights import Image

f32 = np.float32


@kernel
def brightness(image: Image, factor: f32) -> None:
    """Blend with black."""
    pixels = flat(image)
    for i in range(pixels.size):
        pixels[i] = min(max(pixels[i] * factor, f32(0)), f32(1))


@kernel
def contrast(image: Image, factor: f32) -> None:
    """Blend with the mean grey of the image."""
    total = 0.0
    for row in range(image.shape[1]):
        r, g, b = image[0, row], image[1, row], image[2, row]
        part = f32(0)  # a row at a time in float32, the rows in float64
        for i in range(r.size):
            part += f32(0.299) * r[i] + f32(0.587) * g[i] + f32(0.114) * b[i]
        total += float(part)
    pixels = flat(image)
    rest = f32(total / (image.shape[1] * image.shape[2])) * (f32(1) - factor)
    for i in range(pixels.size):
        pixels[i] = min(max(pixels[i] * factor + rest, f32(0)), f32(1))


@kernel
def saturation(image: Image, factor: f32) -> None:
    """Blend with the grey of each pixel; factor 0 is grayscale."""
    planes = carray(address(image), (3, image.size // 3))
    r, g, b = planes[0], planes[1], planes[2]
    for i in range(r.size):
        rest = (f32(0.299) * r[i] + f32(0.587) * g[i] + f32(0.114) * b[i]) * (f32(1) - factor)
        r[i] = min(max(r[i] * factor + rest, f32(0)), f32(1))
        g[i] = min(max(g[i] * factor + rest, f32(0)), f32(1))
        b[i] = min(max(b[i] * factor + rest, f32(0)), f32(1))


@kernel
def hue_channel(n: f32, sextant: f32, high: f32, span: f32) -> f32:
    """One channel of HSV -> RGB: n is 5, 3, 1 for red, green, blue; sextant in [0, 6)."""
    k = n + sextant
    k = k - f32(6) if k >= f32(6) else k
    return high - span * min(max(min(k, f32(4) - k), f32(0)), f32(1))


@kernel
def hue(image: Image, turns: f32) -> None:
    """Turn the hue; closed form, so that no HSV image is made."""
    planes = carray(address(image), (3, image.size // 3))
    r, g, b, shift = planes[0], planes[1], planes[2], turns * f32(6)
    for i in range(r.size):
        red, green, blue = r[i], g[i], b[i]
        high, low = max(red, green, blue), min(red, green, blue)
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
def solarize(image: Image, threshold: f32) -> None:
    """Invert what is at or above the threshold."""
    pixels = flat(image)
    for i in range(pixels.size):
        pixels[i] = f32(1) - pixels[i] if pixels[i] >= threshold else pixels[i]


@kernel
def normalize(image: Image, channel: int, mean: float, std: float) -> None:
    """(x - mean) / std of one channel."""
    pixels, m, scale = flat(image[channel]), f32(mean), f32(1 / std)
    for i in range(pixels.size):
        pixels[i] = (pixels[i] - m) * scale
