"""What pictures an encoder expects, as libraries say it: resized, cropped and normalised so."""

import math
from dataclasses import dataclass
from typing import Literal

Channels = tuple[float, float, float]  # red, green, blue
Resampling = Literal["bilinear", "bicubic"]


@dataclass(frozen=True, slots=True)
class CentralView:
    """Resize the shorter side, crop the centre, then (x - mean) / std of RGB in [0, 1].

    `resize`: pixels of the shorter side; None: the whole picture is squeezed to `size`, its aspect
    ratio is not kept (timm's crop mode "squash").
    """

    size: tuple[int, int]  # pixels: height, width
    resize: int | None
    mean: Channels
    std: Channels
    interpolation: Resampling  # with antialiasing

    @property
    def crop_pct(self) -> float:
        """What timm resizes by: the shorter side becomes floor(size / crop_pct)."""
        if self.resize is None:
            return 1.0
        share = max(self.size) / self.resize
        while math.floor(max(self.size) / share) < self.resize:  # a quotient just below an integer
            share = math.nextafter(share, 0.0)
        return share
