"""Colorization: guess the colours of a picture from its lightness."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ....batch import TargetSpec, ViewSpec
from ....rng import Keys

Table = npt.NDArray[Any]
WHITE = (0.95047, 1.0, 1.08883)  # CIE D65
XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)  # sRGB primaries, as scikit-image and Kornia have them


@dataclass(frozen=True, kw_only=True)
class ColorizationTask:
    """Show the lightness, ask for (a, b) of every `stride`-th pixel.

    Zhang et al. 2016, arXiv:1603.08511; richzhang/colorization. Pixels must come in [0, 1]. The
    view becomes L / 100, which has about the range of a grey picture, so that evaluation may feed
    colour pictures (the official L - 50 is another scale, which the first batch norm undoes). The
    targets are numbers: how they are made classes is the loss's business.
    """

    stride: int = 4  # pixels; the nearest ones are taken, as the official code does
    channels: Literal[1, 3] = 3  # 3: lightness thrice, for backbones that take colour pictures

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise ValueError(f"stride = {self.stride} must be 1 or more")

    def specs(self, view: str, spec: ViewSpec) -> tuple[ViewSpec, TargetSpec]:
        """Views of three channels; per view, two numbers in [-110, 110] for each place."""
        if spec.size("C") != 3 or spec.size("H") % self.stride or spec.size("W") % self.stride:
            raise ValueError(
                f"views.{view} are {spec.shown}; make them "
                f"3 channels and sides that stride = {self.stride} divides"
            )
        shape = (2, spec.size("H") // self.stride, spec.size("W") // self.stride)
        return replace(spec, shape=(self.channels, *spec.shape[1:])), TargetSpec(
            view, spec.count, None, shape
        )

    def check_ops(self, view: str, ops: Collection[str]) -> None:
        """Colours are those of pixels in [0, 1]."""
        if "Normalize" in ops:
            raise ValueError(
                f"needs pixels in [0, 1], but views.{view}.ops has Normalize; take it out"
            )

    def draw(self, keys: Keys, stream: str) -> Table:
        """Nothing is random: (V, B) zeros."""
        return np.zeros((len(keys.views), len(keys.uids)), dtype=np.int64)

    def apply(self, views_VBCHW: Tensor, table: Table, there: Tensor) -> tuple[Tensor, Tensor]:
        """Split RGB views into lightness in [0, 1] and, `stride` apart, the two colours of Lab."""
        lab = rgb_to_lab(views_VBCHW.clamp(0, 1))
        lightness = (lab[:, :, :1] / 100).expand(-1, -1, self.channels, -1, -1)
        return lightness.contiguous(), lab[:, :, 1:, :: self.stride, :: self.stride].contiguous()


def rgb_to_lab(images: Tensor) -> Tensor:
    """(..., 3, H, W) sRGB in [0, 1] -> L in [0, 100], a and b; D65, 2 degrees.

    Not Kornia's: it makes a small tensor on the device in every call, which waits for the device.
    """
    linear = torch.where(images > 0.04045, ((images + 0.055) / 1.055) ** 2.4, images / 12.92)
    red, green, blue = linear.unbind(-3)
    x, y, z = (
        cube_root_or_line((r * red + g * green + b * blue) / white)
        for (r, g, b), white in zip(XYZ, WHITE, strict=True)
    )
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-3)


def cube_root_or_line(t: Tensor) -> Tensor:
    """CIE's f: a cube root that becomes a line near 0."""
    return torch.where(t > 0.008856, t.clamp(min=0.008856) ** (1 / 3), 7.787 * t + 4 / 29)
