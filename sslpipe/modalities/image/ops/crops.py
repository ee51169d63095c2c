"""Crops: what a view is cut from. The first op of a policy, and only it, is one of these."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import kornia.augmentation as K
import numpy as np

from .op import (
    ATTEMPTS,
    F64,
    I64,
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
    numbers: ClassVar = 2 * ATTEMPTS + 2
    reference_only: ClassVar = False

    def __post_init__(self) -> None:
        positive_size(self.size)
        bounded("scale", self.scale, 0, 1)
        bounded("ratio", self.ratio, 0.01, 100)
        for scale in pairs(self.scale):
            for ratio in pairs(self.ratio):
                K.RandomResizedCrop(self.size, scale=scale, ratio=ratio)

    def draw(self, source: Draw) -> F64:
        """Box in pixels of the canvas, whole numbers."""
        u_VBP = source.uniforms(self.numbers)
        height, width = source.sizes_B2.T
        w, h, fits = source.proposals(
            u_VBP[..., :-2], self.scale, self.ratio, height * width, source.sizes_B2[:, ::-1]
        ).first_fitting()
        x = np.floor(u_VBP[..., -2] * (width - w + 1))
        y = np.floor(u_VBP[..., -1] * (height - h + 1))
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
class RandomCrop:
    """A random box of the output's size out of the canvas, zero-padded on each side first."""

    size: tuple[int, int]
    padding: int = 0  # pixels
    columns: ClassVar = BOX
    numbers: ClassVar = 2
    reference_only: ClassVar = False

    def __post_init__(self) -> None:
        positive_size(self.size)
        if self.padding < 0:
            raise ValueError(f"padding = {self.padding} must be at least 0")
        K.RandomCrop(self.size, padding=self.padding)

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
        K.CenterCrop(self.size)

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
        K.Resize(self.size, antialias=self.antialias)

    def draw(self, source: Draw) -> F64:
        """The canvas."""
        height, width = source.sizes_B2.T
        box = np.stack([0.0 * width, 0.0 * height, width, height], -1)
        return np.broadcast_to(box, (len(source.keys.views), *box.shape))
