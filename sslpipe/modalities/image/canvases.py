"""A stored image to its canvas, in a worker: no torch, no draws, at the scale that it is told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...device.buffers import Buffers
from .. import Raw
from .decode import TURNS, decode, jpeg_orientation, scale_factor, shrunk, stored_sides

if TYPE_CHECKING:
    from ...stream.reader import Sample

Sides = tuple[int, int]  # height, width in pixels


class CanvasDecode:
    """`decode(sample, (factor,))` -> (H, W, 3) uint8 at 1/factor of its nominal sides.

    size: shorter side of the nominal canvas at most, see `decode.decode`. Safe in threads. A factor
    above 1 is followed where libjpeg can scale, which is a property of the bytes.
    """

    def __init__(self, size: int | None) -> None:
        self.size = size
        self._buffers = Buffers()

    def __reduce__(self) -> tuple[type[CanvasDecode], tuple[int | None]]:
        """Workers have buffers of their own."""
        return type(self), (self.size,)

    def extent(self, sample: Sample) -> Sides:
        """Height and width of an upright JPEG that libjpeg can scale; (0, 0) for all else."""
        return jpeg_sides(sample.data) or (0, 0)

    def __call__(self, sample: Sample, instructions: Sequence[int]) -> Raw:
        """Decode one sample.

        Raises:
            SampleError: the reason, without the place.
        """
        factor = int(instructions[0])
        sides = jpeg_sides(sample.data) if factor > 1 else None
        if sides is None:
            pixels = decode(sample.data, size=self.size, buffers=self._buffers)
            return Raw(pixels, pixels.shape[:2])
        size = side_at(sides, self.size, factor)
        pixels = decode(sample.data, size=size, factor=factor, buffers=self._buffers)
        return Raw(pixels, canvas_sides(sides, self.size))


def jpeg_sides(data: bytes) -> Sides | None:
    """Of an upright JPEG by its header; None: it is none, or libjpeg cannot scale it."""
    stored = stored_sides(data)
    if stored is None:
        return None
    return stored[::-1] if TURNS[jpeg_orientation(data)][0] else stored


def canvas_sides(sides: Sides, size: int | None, factor: int = 1) -> Sides:
    """The sides of the canvas that `decode` makes of a JPEG."""
    factor = scale_factor(min(sides), size) if size else factor
    return shrunk(math.ceil(sides[0] / factor), math.ceil(sides[1] / factor), size)


def side_at(sides: Sides, size: int | None, factor: int) -> int | None:
    """The `size` that gives a canvas at 1/factor; None where libjpeg alone does it."""
    return None if size is None else math.ceil(min(canvas_sides(sides, size)) / factor)
