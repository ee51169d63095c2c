"""The augmentation vocabulary: what each op is called, accepts and draws. It touches no pixel.

Names and settings are Kornia's; every op is also built as the genuine Kornia class, which checks
the ranges. What is ours says so. An op draws a table with `columns`, one row per view and sample;
its gate is always draw 0 of its stream, so switching an op off never changes another draw.
A range may be a list of ranges, and p a list, with one entry per view.
Any other Kornia class is a `KorniaOp`, which draws the seeds of Kornia's own samplers.
An op that says `numbers`, how many uniforms it asks for, gets them with those of the other ops.

An op of your own: save this as `mine.py` and write `- "mine:Dim": {least: 0.3}` among the ops.

```python
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch


@dataclass(frozen=True, kw_only=True)
class Dim:  # multiplies the pixels of some views by a number in [least, 1]
    least: float = 0.5
    p: float = 0.5
    columns: ClassVar = ("on", "factor")
    numbers: ClassVar = 2  # uniforms that it asks for; may be left out

    def draw(self, source):  # (V, B, P): what each view of each sample gets; no pixels here
        u_VB2 = source.uniforms(2)
        gates_VB = source.gates(u_VB2[..., 0], self.p)
        return np.stack([gates_VB, source.between(u_VB2[..., 1], (self.least, 1.0))], axis=-1)

    def apply(self, images_RCHW, rows_RP):  # new images, given their rows of the table
        factors_R = np.where(rows_RP[:, 0] > 0, rows_RP[:, 1], 1)
        return images_RCHW * torch.from_numpy(factors_R).to(images_RCHW)[:, None, None, None]
```
"""

from .colour import ColorJitter, Normalize, RandomGaussianBlur, RandomGrayscale, RandomSolarize
from .crops import CenterCrop, MultiScaleCrop, RandomCrop, RandomResizedCrop, Resize
from .erase import RandomErasing
from .foreign import KorniaOp
from .op import F64, Draw, Op, OwnPixels, Pair, Particular, PerView, per_view, uniform_blocks
from .spatial import RandomHorizontalFlip, RandomRotation, RandomRotation90, RandomVerticalFlip
from .tone import (
    RandomAutoContrast,
    RandomEqualize,
    RandomInvert,
    RandomPosterize,
    RandomSharpness,
)

__all__ = [
    "F64", "CenterCrop", "ColorJitter", "Draw", "KorniaOp", "MultiScaleCrop", "Normalize", "Op",
    "OwnPixels", "Pair", "Particular", "PerView", "RandomAutoContrast", "RandomCrop",
    "RandomEqualize", "RandomErasing", "RandomGaussianBlur", "RandomGrayscale",
    "RandomHorizontalFlip", "RandomInvert", "RandomPosterize", "RandomResizedCrop",
    "RandomRotation", "RandomRotation90", "RandomSharpness", "RandomSolarize",
    "RandomVerticalFlip", "Resize", "per_view", "uniform_blocks",
]  # fmt: skip
