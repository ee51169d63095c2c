"""The augmentation vocabulary: what each op is called, accepts and draws. It touches no pixel.

Names and settings are Kornia's; every op is also built as the genuine Kornia class, which checks
the ranges. What is ours says so. An op draws a table with `columns`, one row per view and sample;
its gate is always draw 0 of its stream, so switching an op off never changes another draw.
A range may be a list of ranges, and p a list, with one entry per view.
Any other Kornia class is a `KorniaOp` op, which draws the seeds of Kornia's own samplers.
"""

from .colour import ColorJitter, Normalize, RandomGaussianBlur, RandomGrayscale, RandomSolarize
from .crops import CenterCrop, RandomCrop, RandomResizedCrop, Resize
from .erase import RandomErasing
from .foreign import KorniaOp
from .op import F64, Draw, Op, OwnPixels, Pair, Particular, PerView, per_view
from .spatial import RandomHorizontalFlip, RandomRotation, RandomRotation90, RandomVerticalFlip
from .tone import (
    RandomAutoContrast,
    RandomEqualize,
    RandomInvert,
    RandomPosterize,
    RandomSharpness,
)

__all__ = [
    "F64", "CenterCrop", "ColorJitter", "Draw", "KorniaOp", "Normalize", "Op", "OwnPixels", "Pair",
    "Particular", "PerView", "RandomAutoContrast", "RandomCrop", "RandomEqualize",
    "RandomErasing", "RandomGaussianBlur", "RandomGrayscale", "RandomHorizontalFlip",
    "RandomInvert", "RandomPosterize", "RandomResizedCrop", "RandomRotation", "RandomRotation90",
    "RandomSharpness", "RandomSolarize", "RandomVerticalFlip", "Resize", "per_view",
]  # fmt: skip
