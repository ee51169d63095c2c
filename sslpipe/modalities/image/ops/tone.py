"""Tone: the fixed adjustments that stronger policies mix in. All want values in [0, 1]."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .op import F64, UNBOUNDED, Draw, Gated, Pair, PerView, bounded, probabilities


@dataclass(frozen=True, kw_only=True)
class RandomInvert(Gated):
    """1 - x. Kornia's `max_val` is left at 1, since views are in [0, 1]."""

    p: PerView[float] = 0.5
    reference_only: ClassVar = True


@dataclass(frozen=True, kw_only=True)
class RandomEqualize(Gated):
    """Flatten the histogram of each channel, at 8 bits."""

    p: PerView[float] = 0.5
    reference_only: ClassVar = True


@dataclass(frozen=True, kw_only=True)
class RandomAutoContrast(Gated):
    """Stretch each channel to [0, 1]. Kornia's `clip_output`, which does nothing, is left out.

    A channel of one value becomes 0, as in Kornia; torchvision leaves it.
    """

    p: PerView[float] = 1.0
    reference_only: ClassVar = True


@dataclass(frozen=True, kw_only=True)
class RandomPosterize:
    """Keep the highest bits of 8.

    Ours: every whole number of bits is equally likely; Kornia rounds a uniform number, which
    halves the chance of both ends.
    """

    bits: int | PerView[tuple[int, int]] = 3  # a number b: [b, 8]
    p: PerView[float] = 0.5
    columns: ClassVar = ("on", "bits")
    numbers: ClassVar = 2
    reference_only: ClassVar = True

    def __post_init__(self) -> None:
        probabilities(self.p)
        bounded("bits", self.bounds, 0, 8)

    @property
    def bounds(self) -> PerView[tuple[int, int]]:
        """The range of bits that are kept; one number is the least."""
        return self.bits if isinstance(self.bits, tuple) else (self.bits, 8)

    def draw(self, source: Draw) -> F64:
        """Draw the gate and the number of bits that are kept, (V, B, 2)."""
        u = source.uniforms(2)
        on = source.gates(u[..., 0], self.p)
        return np.stack([on, source.whole(u[..., 1], self.bounds)], -1)


@dataclass(frozen=True, kw_only=True)
class RandomSharpness:
    """Blend with a 3 x 3 smoothed copy: 0 is the copy, 1 the view, more sharpens.

    As in Kornia, a number s means [0, s], and so the default only blurs.
    """

    sharpness: float | PerView[Pair] = 0.5
    p: PerView[float] = 0.5
    columns: ClassVar = ("on", "sharpness")
    numbers: ClassVar = 2
    reference_only: ClassVar = True

    def __post_init__(self) -> None:
        probabilities(self.p)
        bounded("sharpness", self.bounds, 0, UNBOUNDED)

    @property
    def bounds(self) -> PerView[Pair]:
        """The range of the factor; one number is its end, and 0 its start."""
        return self.sharpness if isinstance(self.sharpness, tuple) else (0.0, self.sharpness)

    def check_view(self, height: int, width: int) -> None:
        """Raise ValueError if the 3 x 3 kernel does not fit."""
        if min(height, width) < 3:
            raise ValueError(f"views of {height} x {width} px are smaller than its 3 x 3 kernel")

    def draw(self, source: Draw) -> F64:
        """Draw the gate and the factor, (V, B, 2)."""
        u = source.uniforms(2)
        on = source.gates(u[..., 0], self.p)
        return np.stack([on, source.between(u[..., 1], self.bounds)], -1)
