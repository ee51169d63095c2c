"""Erasing: a box of the view is painted over."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .op import ATTEMPTS, F64, Draw, Pair, PerView, bounded, probabilities


@dataclass(frozen=True, kw_only=True)
class RandomErasing:
    """Paint a random box over with `value`; the boxes are drawn as torchvision's `get_params` does.

    Ours: the aspect ratio is log-uniform, and 10 boxes are tried until one is smaller than the view
    each way (none: nothing is erased). Kornia flips a coin between [low, 1] and [1, high], draws
    evenly there, and clamps what sticks out. `value` is that of the place in the list of ops: 0 is
    black before Normalize, and the mean colour, torchvision's habit, after it.
    """

    scale: PerView[Pair] = (0.02, 0.33)  # of the view's area
    ratio: PerView[Pair] = (0.3, 3.3)  # height / width
    value: float = 0.0  # in [0, 1]
    p: PerView[float] = 0.5
    columns: ClassVar = ("on", "x", "y", "w", "h")
    numbers: ClassVar = 1 + 2 * ATTEMPTS + 2
    reference_only: ClassVar = True

    def __post_init__(self) -> None:
        probabilities(self.p)
        bounded("scale", self.scale, 0, 1)
        bounded("ratio", self.ratio, 0.01, 100)
        if not 0 <= self.value <= 1:
            raise ValueError(f"value = {self.value} must lie in [0, 1]")

    def draw(self, source: Draw) -> F64:
        """Gate and box in pixels of the view; no width and no height where no box was found."""
        u_VBP = source.uniforms(self.numbers)
        height, width = source.view
        samples = len(source.keys.uids)
        area_B = np.full(samples, height * width)
        smaller_B2 = np.broadcast_to([height - 1, width - 1], (samples, 2))
        h, w, fits = source.proposals(
            u_VBP[..., 1:-2], self.scale, self.ratio, area_B, smaller_B2
        ).first_fitting()
        x = np.floor(u_VBP[..., -2] * (width - w + 1))
        y = np.floor(u_VBP[..., -1] * (height - h + 1))
        on = source.gates(u_VBP[..., 0], self.p)
        box = np.stack([x, y, w, h], -1) * fits[..., None]
        return np.concatenate([on[..., None], box], -1)
