"""A stored image to its canvas, in a worker: no torch, no draws, at the scale that it is told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...device.buffers import Buffers, Memory
from .. import Raw
from .decode import TURNS, decode, jpeg_orientation, scale_factor, shrunk, stored_sides
from .jpeg import WHOLE

if TYPE_CHECKING:
    from ...stream.reader import Sample

I64 = npt.NDArray[np.int64]
Sides = tuple[int, int]  # height, width in pixels


class CanvasDecode:
    """`decode(sample, (factor, *box))` -> (H, W, 3) uint8 at 1/factor of its nominal sides.

    box: two numbers, a `jpeg.Box`, or nothing; pixels outside it may be arbitrary.

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

    def room(self, *, extents: I64, sizes: I64, instructions: I64) -> I64:
        """Bytes of each canvas, (B,); 0 where the index does not know its sides."""
        factors = instructions[:, 0]
        sides_B2 = -(-extents[:, :2] // factors[:, None])
        if self.size is not None:
            goal = -(-self.size // factors)  # at most one pixel more than `side_at` says
            shorter = np.maximum(sides_B2.min(1), 1)
            ratio = np.minimum(1.0, (goal + 1) / shorter)
            sides_B2 = np.ceil(sides_B2 * ratio[:, None]).astype(np.int64)
        bytes_B: I64 = 3 * sides_B2[:, 0] * sides_B2[:, 1]
        return bytes_B

    def __call__(
        self, sample: Sample, instructions: Sequence[int], memory: Memory | None = None
    ) -> Raw:
        """Decode one sample.

        Raises:
            SampleError: the reason, without the place.
        """
        buffers = memory or self._buffers
        factor = int(instructions[0])
        sides = jpeg_sides(sample.data) if factor > 1 else None
        if sides is None:
            # the box is of a picture with the sides that the index says
            box = (instructions[1], instructions[2]) if len(instructions) > 1 else WHOLE
            pixels = decode(
                sample.data, size=self.size, buffers=buffers, guess=sample.sides, box=box
            )
            return Raw(pixels, pixels.shape[:2])
        size = side_at(sides, self.size, factor)
        pixels = decode(sample.data, size=size, factor=factor, buffers=buffers)
        return Raw(pixels, canvas_sides(sides, self.size))


class JpegBytes:
    """Leaves to a device what it can decode: the bytes of a JPEG, (n,) uint8; all else is decoded.

    baseline: the flag of the index that says baseline JPEG of three components. What EXIF turns
    goes to `cpu`, and what does not end as a JPEG ends: devices fill up cut pictures without a
    word. The extent of bytes is not known before they are decoded: zeros.
    """

    def __init__(self, cpu: CanvasDecode, baseline: int) -> None:
        self._cpu, self._baseline = cpu, baseline

    def extent(self, sample: Sample) -> Sides:
        """Height and width of the canvas, as the CPU's decoder finds them."""
        return self._cpu.extent(sample)

    def room(self, *, extents: I64, sizes: I64, instructions: I64) -> I64:
        """Bytes of the payloads: most are left as they are."""
        return sizes

    def __call__(
        self, sample: Sample, instructions: Sequence[int], memory: Memory | None = None
    ) -> Raw:
        """Leave a sample to the device, or decode it here.

        Raises:
            SampleError: the CPU cannot decode it.
        """
        data = sample.data
        whole = data.rstrip(b"\0").endswith(b"\xff\xd9")
        if sample.flags & self._baseline and whole and jpeg_orientation(data) == 1:
            return Raw(np.frombuffer(data, np.uint8), (0, 0))
        return self._cpu(sample, instructions, memory)


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
