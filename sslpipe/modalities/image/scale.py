"""Scaled decoding: the boxes of a sample's views are known before it is decoded, so nothing finer
than its views can show need be decoded.

The rule: a canvas is decoded at 1/f of its sides, for the largest f of 8, 4, 2 at which every box
of every view is at least f times as high and f times as wide as the view that it is resized to: no
view is enlarged by it. A crop that is not resized, or not antialiased, admits no f.

The table of a batch stays in pixels of the nominal canvas, the one that f = 1 would give; `fit`
puts its boxes on the canvas that there is. They land on whole pixels of it: at most half a pixel
beside their place, which is at most half a pixel of the view. f is a function of (seed, epoch, uid,
bytes) alone.

Views of photos enlarged to 2000 x 1496 differ on average by 0.1 to 0.6 levels where boxes lie on
whole pixels of the small canvas (libjpeg's filter), by 1.5 (f = 2) to 2.9 (f = 4) with the boxes
moved to them; a box moved by one pixel of the photo makes 1.5.
"""

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...device.buffers import Buffers
from . import ops
from .decode import MAX_SIDE, TURNS, decode, jpeg_orientation, scale_factor, shrunk, stored_sides
from .draws import Policy, keys_of
from .ops import Draw

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Sides = tuple[int, int]  # height, width in pixels
FACTORS = (8, 4, 2)  # by which libjpeg scales with vector code


@dataclass(frozen=True, slots=True)
class Canvas:
    """A decoded image; boxes are drawn for its nominal sides, which may be larger than it."""

    pixels: Tensor  # (H, W, 3) uint8
    nominal: Sides

    @property
    def scaled(self) -> bool:
        """It was decoded at a smaller scale."""
        return tuple(self.pixels.shape[:2]) != self.nominal


class Stored(Protocol):
    """A sample as stored."""

    @property
    def uid(self) -> int: ...
    @property
    def data(self) -> bytes: ...
    @property
    def flags(self) -> int:
        """Of the index."""
        ...

    @property
    def sides(self) -> Sides:
        """Height and width by the index; 0, 0: not known."""
        ...


class Decoder:
    """`decoder(sample, epoch)` -> Canvas, as small as its views allow. Safe in threads.

    size: of the nominal canvas, see `decode`. It counts what it did: `done`, `scaled`.
    """

    def __init__(
        self,
        policies: Mapping[str, Policy],
        *,
        seed: int,
        size: int | None,
        scaled: Literal["auto", "never"],
    ) -> None:
        self.policies, self.seed, self.size = tuple(policies.values()), seed, size
        self.auto = scaled == "auto"
        self.done = self.scaled = 0
        self._lock = threading.Lock()
        self._buffers = Buffers()

    def __call__(self, sample: Stored, epoch: int) -> Canvas:
        """Decode one sample.

        Raises:
            SampleError: the reason, without the place.
        """
        sides = jpeg_sides(sample.data) if self.hopes(sample.sides) else None
        factor = 1 if sides is None else self.factor(sides, sample.uid, epoch)
        size = self.size if factor == 1 or sides is None else side_at(sides, self.size, factor)
        pixels = decode(sample.data, size=size, factor=factor, buffers=self._buffers)
        actual = (pixels.shape[0], pixels.shape[1])
        nominal = actual if sides is None or factor == 1 else canvas_sides(sides, self.size)
        with self._lock:
            self.done += 1
            self.scaled += factor > 1
        return Canvas(torch.from_numpy(pixels), nominal)

    def hopes(self, indexed: Sides) -> bool:
        """Whether it is worth reading the header: 0.08 ms, for the indexed sides tell most."""
        return self.auto and (indexed == (0, 0) or self.most(shrunk(*indexed, self.size)) > 1)

    @property
    def summary(self) -> str:
        """How often it was of use."""
        return f"{self.scaled:,} of {self.done:,} images were decoded at a smaller scale"

    def factor(self, sides: Sides, uid: int, epoch: int) -> int:
        """The largest factor that enlarges no view of a JPEG of these sides."""
        nominal = canvas_sides(sides, self.size)
        factor = self.most(nominal)
        for policy in self.policies:
            if factor > 1:  # drawing costs 0.2 ms
                boxes = self.boxes(policy, nominal, uid, epoch)
                factor = largest(boxes[:, 3:1:-1], least_box(policy), below=factor)
        return factor

    def most(self, nominal: Sides) -> int:
        """The largest factor that boxes as large as the canvas would admit."""
        return min(largest(np.array(nominal), least_box(policy)) for policy in self.policies)

    def boxes(self, policy: Policy, nominal: Sides, uid: int, epoch: int) -> F64:
        """(V, 4): the head of the sample's rows in the table."""
        first = policy.steps[0]
        keys = keys_of(policy, seed=self.seed, epochs=np.array([epoch]), uids=np.array([uid]))
        return first.op.draw(Draw(keys, first.stream, np.array([nominal]), policy.crop.size))[:, 0]


def largest(boxes_V2: F64 | I64, view: Sides, below: int = FACTORS[0]) -> int:
    """The largest factor up to `below` at which boxes (height, width) are no smaller than views."""
    room = (boxes_V2 / view).min()
    return next((factor for factor in FACTORS if factor <= min(room, below)), 1)


def least_box(policy: Policy) -> Sides:
    """The height and width that a group's boxes must keep: its views', or more than there is."""
    crop = policy.crop
    if isinstance(crop, ops.RandomCrop) or not crop.antialias:
        return MAX_SIDE + 1, MAX_SIDE + 1
    return crop.size


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


def fit(boxes: F64 | F32, nominal_B2: I64, actual_B2: I64) -> F64:
    """Boxes (..., B, 4) of x, y, w, h on nominal canvases -> on the actual ones, whole pixels."""
    ratio_B2 = (actual_B2 / nominal_B2)[..., ::-1]  # x, y
    sides = np.maximum(np.rint(boxes[..., 2:] * ratio_B2), 1)
    corner = np.minimum(np.rint(boxes[..., :2] * ratio_B2), actual_B2[..., ::-1] - sides)
    return np.concatenate([corner, sides], -1)


def fitted(policy: Policy, table_VBP: F32, nominal_B2: I64, actual_B2: I64) -> F32:
    """The table that an executor gets: the boxes of scaled canvases are put on them."""
    scaled_B = (nominal_B2 != actual_B2).any(-1)
    if not scaled_B.any():
        return table_VBP
    placed, columns = table_VBP.copy(), policy.steps[0].columns
    placed[:, scaled_B, columns] = fit(
        table_VBP[:, scaled_B, columns], nominal_B2[scaled_B], actual_B2[scaled_B]
    )
    return placed
