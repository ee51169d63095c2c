"""Flips and rotations: where pixels go."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from .op import F64, Draw, Gated, Pair, PerView, bounded, pairs, probabilities


@dataclass(frozen=True, kw_only=True)
class RandomHorizontalFlip(Gated):
    """Mirror left and right with probability `p`."""

    p: PerView[float] = 0.5


@dataclass(frozen=True, kw_only=True)
class RandomVerticalFlip(Gated):
    """Mirror top and bottom with probability `p`."""

    p: PerView[float] = 0.5


@dataclass(frozen=True, kw_only=True)
class RandomRotation:
    """Turn about the centre, counter-clockwise, by interpolation; zeros come in at the corners."""

    degrees: float | PerView[Pair]  # a number d: [-d, d]
    resample: Literal["bilinear", "nearest"] = "bilinear"
    p: PerView[float] = 0.5
    columns: ClassVar = ("on", "degrees")
    numbers: ClassVar = 2
    reference_only: ClassVar = True

    def __post_init__(self) -> None:
        probabilities(self.p)
        bounded("degrees", self.bounds, -360, 360)

    @property
    def bounds(self) -> PerView[Pair]:
        """The range of angles in degrees; one number is its half width."""
        return self.degrees if isinstance(self.degrees, tuple) else (-self.degrees, self.degrees)

    def draw(self, source: Draw) -> F64:
        """Draw the gate and the angle in degrees, (V, B, 2)."""
        u = source.uniforms(2)
        on = source.gates(u[..., 0], self.p)
        return np.stack([on, source.between(u[..., 1], self.bounds)], -1)


@dataclass(frozen=True, kw_only=True)
class RandomRotation90:
    """Quarter turns, counter-clockwise, by moving pixels: exact, on square views.

    Ours: every number of turns from `times` is equally likely, and a turn interpolates nothing.
    Kornia rounds a uniform number, so its (0, 3) gives 1/6, 1/3, 1/3, 1/6, and warps, which leaves
    1e-7 of noise. Our defaults are all four turns, always; Kornia's p is 0.5.
    """

    times: PerView[tuple[int, int]] = (0, 3)
    p: PerView[float] = 1.0
    columns: ClassVar = ("on", "turns")
    numbers: ClassVar = 2
    reference_only: ClassVar = True

    def __post_init__(self) -> None:
        probabilities(self.p)
        bounded("times", self.times, -3, 3)

    def check_view(self, height: int, width: int) -> None:
        """Raise ValueError if a turn would change the shape."""
        odd = any(low != high or low % 2 for low, high in pairs(self.times))
        if odd and height != width:
            raise ValueError(f"views of {height} x {width} px change shape; make them square")

    def draw(self, source: Draw) -> F64:
        """Draw the gate and the number of quarter turns, (V, B, 2)."""
        u = source.uniforms(2)
        on = source.gates(u[..., 0], self.p)
        return np.stack([on, source.whole(u[..., 1], self.times)], -1)
