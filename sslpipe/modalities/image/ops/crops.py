"""Crops: what a view is cut from. The first op of a policy, and only it, is one of these."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from .op import (
    ATTEMPTS,
    F64,
    I64,
    SIDE,
    Draw,
    Pair,
    PerView,
    bounded,
    pairs,
    positive_size,
)

BOX = ("x", "y", "w", "h")


@dataclass(frozen=True, kw_only=True)
class RandomResizedCrop:
    """A random box, resized; the boxes are drawn as torchvision's `get_params` does.

    `antialias` is ours: Kornia has none, and without it small crops alias (20 to 39 dB).
    """

    size: tuple[int, int]  # height, width in pixels
    scale: PerView[Pair] = (0.08, 1.0)  # of the canvas area
    ratio: PerView[Pair] = (3 / 4, 4 / 3)  # width / height
    resample: Literal["bilinear", "bicubic"] = "bilinear"
    antialias: bool = True
    columns: ClassVar = BOX
    # two numbers for each attempt, then two for the place: the first two attempts and the place are
    # drawn for all, since one box in fifty needs more
    blocks: ClassVar = (0, 2 * ATTEMPTS // 4)
    reference_only: ClassVar = False

    def __post_init__(self) -> None:
        positive_size(self.size)
        bounded("scale", self.scale, 0, 1)
        bounded("ratio", self.ratio, 0.01, 100)

    def draw(self, source: Draw) -> F64:
        """Box in pixels of the canvas, whole numbers."""
        u_VB8 = source.blocks(self.blocks)
        height, width = source.sizes_B2.T
        w, h, fits = source.proposals(
            u_VB8[..., :4], self.scale, self.ratio, height * width, source.sizes_B2[:, ::-1],
            rest=lambda v, b: source.of_some(2 * ATTEMPTS - 4, v, b, first=1),
        ).first_fitting()  # fmt: skip
        x = np.floor(u_VB8[..., 4] * (width - w + 1))
        y = np.floor(u_VB8[..., 5] * (height - h + 1))
        box = np.stack([x, y, w, h], -1)
        if fits.all():
            return box
        return np.where(fits[..., None], box, self.fallback(height, width))

    def fallback(self, height: I64, width: I64) -> F64:
        """(V or 1, B, 4): torchvision's central crop at the clamped aspect ratio."""
        low, high = np.reshape(pairs(self.ratio), (-1, 2)).T[..., None]
        aspect = np.clip(width / height, low, high)
        w = np.minimum(width, np.rint(height * aspect))
        h = np.minimum(height, np.rint(width / aspect))
        return np.stack([(width - w) // 2, (height - h) // 2, w, h], -1)


@dataclass(frozen=True, kw_only=True)
class MultiScaleCrop:
    """One of a few sizes at one of thirteen places, resized; not Kornia's (VideoMAE, TSN).

    `GroupMultiScaleCrop` of VideoMAE's transforms.py: sides are shares of the shorter side of the
    canvas, rounded down, and those within two pixels of `size` become it; height and width are
    neighbours in `scales`; a place is a corner, the centre, the middle of a side, or half-way from
    the centre to a corner. Of 340 x 256 at 224 px the sides are 256, 224, 192 and 168, which with
    the places makes 130 boxes. All are equally likely.
    """

    size: tuple[int, int]  # height, width in pixels
    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)  # of the shorter side
    max_distort: int = 1  # how far height and width may lie apart in `scales`
    resample: Literal["bilinear", "bicubic"] = "bilinear"
    antialias: bool = True
    columns: ClassVar = BOX
    numbers: ClassVar = 2
    reference_only: ClassVar = False

    def __post_init__(self) -> None:
        positive_size(self.size)
        if not self.scales or not all(0 < scale <= 1 for scale in self.scales):
            raise ValueError(f"scales = {list(self.scales)} must lie in (0, 1]")
        if self.max_distort < 0:
            raise ValueError(f"max_distort = {self.max_distort} must be 0 or more")

    def draw(self, source: Draw) -> F64:
        """Box in pixels of the canvas, whole numbers."""
        u_VB2 = source.uniforms(2)
        near = range(-self.max_distort, self.max_distort + 1)
        count = len(self.scales)
        pairs_N2 = np.array([(i, i + d) for i in range(count) for d in near if 0 <= i + d < count])
        pair_VB2 = pairs_N2[np.floor(u_VB2[..., 0] * len(pairs_N2)).astype(int)]
        sides_BS = np.floor(source.sizes_B2.min(1)[:, None] * np.array(self.scales))
        row = np.arange(len(sides_BS))
        h, w = (
            snapped(sides_BS, side)[row, pair_VB2[..., axis]] for axis, side in enumerate(self.size)
        )
        height, width = source.sizes_B2.T
        h, w = np.clip(h, 1, height), np.clip(w, 1, width)
        place_VB2 = PLACES[np.floor(u_VB2[..., 1] * len(PLACES)).astype(int)]
        x, y = place_VB2[..., 0] * ((width - w) // 4), place_VB2[..., 1] * ((height - h) // 4)
        return np.stack([x, y, w, h], -1)


# quarters of the room to the right and downwards
PLACES = np.array([
    (0, 0), (4, 0), (0, 4), (4, 4), (2, 2), (0, 2), (4, 2), (2, 4), (2, 0), (1, 1), (3, 1), (1, 3),
    (3, 3),
])  # fmt: skip


def snapped(sides_BS: F64, side: int) -> F64:
    """Sides less than three pixels from `side` become it."""
    return np.where(np.abs(sides_BS - side) < 3, side, sides_BS)


@dataclass(frozen=True, kw_only=True)
class RandomCrop:
    """A random box of the output's size out of the canvas, zero-padded on each side first."""

    size: tuple[int, int]
    padding: int = 0  # pixels
    columns: ClassVar = BOX
    numbers: ClassVar = 2
    reference_only: ClassVar = False

    def __post_init__(self) -> None:
        positive_size(self.size)
        if not 0 <= self.padding <= SIDE:
            raise ValueError(f"padding = {self.padding} must be 0 to {SIDE:,} pixels")

    def draw(self, source: Draw) -> F64:
        """Box in pixels; x and y reach from -padding. A smaller canvas is padded further."""
        u_VB2 = source.uniforms(2)
        h, w = self.size
        room = source.sizes_B2 + 2 * self.padding - np.array(self.size)  # (B, 2): y, x
        yx = np.floor(u_VB2 * (np.maximum(room, 0) + 1)) - self.padding + np.minimum(room, 0) // 2
        sides = np.broadcast_to([float(w), float(h)], yx.shape)
        return np.concatenate([yx[..., ::-1], sides], -1)


@dataclass(frozen=True, kw_only=True)
class CenterCrop:
    """The central box, for evaluation. `resize` is ours: shrink the shorter side to it first."""

    size: tuple[int, int]
    resize: int | None = None  # pixels; None: the larger of `size`
    resample: Literal["bilinear", "bicubic"] = "bicubic"
    antialias: bool = True
    columns: ClassVar = BOX
    reference_only: ClassVar = False

    def __post_init__(self) -> None:
        positive_size(self.size)
        if self.resize is not None and self.resize < max(self.size):
            raise ValueError(f"resize = {self.resize} is smaller than size = {list(self.size)}")

    def draw(self, source: Draw) -> F64:
        """Crop and resize as one box, rounded to whole canvas pixels."""
        height, width = source.sizes_B2.T
        unit = np.minimum(height, width) / (self.resize or max(self.size))
        h = np.clip(np.rint(self.size[0] * unit), 1, height)
        w = np.clip(np.rint(self.size[1] * unit), 1, width)
        box = np.stack([(width - w) // 2, (height - h) // 2, w, h], -1)
        return np.broadcast_to(box, (len(source.keys.views), *box.shape))


@dataclass(frozen=True, kw_only=True)
class Resize:
    """The whole canvas, squeezed to `size`: the box is the canvas.

    Kornia also takes one number, the side to keep, and our `antialias` is on. One side would leave
    views of many shapes; to keep the aspect ratio, write `CenterCrop`.
    """

    size: tuple[int, int]
    resample: Literal["bilinear", "bicubic"] = "bilinear"
    antialias: bool = True
    columns: ClassVar = BOX
    reference_only: ClassVar = False

    def __post_init__(self) -> None:
        positive_size(self.size)

    def draw(self, source: Draw) -> F64:
        """The whole canvas as the box, (V, B, 4): x, y, w, h."""
        height, width = source.sizes_B2.T
        box = np.stack([0.0 * width, 0.0 * height, width, height], -1)
        return np.broadcast_to(box, (len(source.keys.views), *box.shape))
