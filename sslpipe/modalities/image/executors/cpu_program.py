"""A policy as a table of numbers, which the compiled loops of the `cpu` executor go through."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import ops
from ..draws import Crop, Policy, Step

UPSIDE_DOWN, MIRROR, CROP, JITTER, GRAYSCALE, BLUR, SOLARIZE, NORMALIZE = range(8)
LINE = (
    6  # numbers of a line: code, first column of the op's draws, whether that is a gate, settings
)

CROPS = (
    ops.RandomResizedCrop, ops.MultiScaleCrop, ops.RandomCrop, ops.CenterCrop, ops.Resize
)  # fmt: skip
Settings = tuple[float, ...]
Lines = Callable[[Any], list[tuple[int, Settings]]]  # an op -> code and settings of its lines

# A new op is its loop, a case in `cpu_view` and a line here. All of these treat every pixel alike
# by its value and by sums over all pixels, or are a blur whose kernel and border are symmetric:
# flip(op(x)) = op(flip(x)), so all flips of a view are done by the crop, which reads the canvas
# mirrored at no cost. An op that does not commute so needs a flip in place beside it.
FLIPS: Mapping[type, int] = MappingProxyType({
    ops.RandomVerticalFlip: UPSIDE_DOWN,
    ops.RandomHorizontalFlip: MIRROR,
})  # fmt: skip
LINES: Mapping[type, Lines] = MappingProxyType({
    ops.ColorJitter: lambda op: [(JITTER, ())],
    ops.Normalize: lambda op: [
        (NORMALIZE, (channel, *values))
        for channel, values in enumerate(zip(op.mean, op.std, strict=True))
    ],
    ops.RandomGaussianBlur: lambda op: [(BLUR, op.kernel_size)],
    ops.RandomGrayscale: lambda op: [(GRAYSCALE, ())],
    ops.RandomSolarize: lambda op: [(SOLARIZE, ())],
})  # fmt: skip


def unsupported(policy: Policy) -> list[str]:
    """Names of the ops of a policy that this executor cannot do."""
    known = (CROPS, *((*FLIPS, *LINES) for _ in policy.steps[1:]))
    pairs = zip(policy.steps, known, strict=True)
    return [type(step.op).__name__ for step, these in pairs if type(step.op) not in these]


def program(policy: Policy) -> npt.NDArray[np.float64]:
    """(lines, LINE): the flips, the crop, and the other ops in their order."""
    first, *others = policy.steps
    flips = [step for step in others if type(step.op) in FLIPS]
    lines = [line(step, FLIPS[type(step.op)], ()) for step in flips]
    lines.append(line(first, CROP, resampling(policy.crop)))
    for step in others:
        if step not in flips:
            lines += [line(step, *code) for code in LINES[type(step.op)](step.op)]
    return np.array(lines, np.float64)


def resampling(crop: Crop) -> Settings:
    """Whether it is cubic, and antialiased; RandomCrop's box is as large as its view."""
    if isinstance(crop, ops.RandomCrop):
        return (False, False)
    return (crop.resample == "bicubic", crop.antialias)


def line(step: Step, code: int, settings: Settings) -> Settings:
    """One line of a program."""
    gated = step.op.columns[:1] == ("on",)
    return (code, step.start, gated, *settings, *(0,) * (LINE - 3 - len(settings)))
