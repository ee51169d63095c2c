"""The ops as pure functions of three planes r, g, b of (R, h, w) float32; made to be compiled.

Planes, because Inductor fuses the colour ops on them into one pass over the pixels, and with a
channel dimension it does not: 1.7 MB per view of 224 px for crop and colour, against 25.6 MB for
the colour alone (its own count, with its C++ backend).

No function draws, reads the host, writes in place or makes a tensor on another device.

Letters: R = V * B rows, each one view of one sample.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..draws import Policy
from .planar_crop import FLIPS, Planes, crop, each, rowwise, sum_of

Graph = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


def unsupported(policy: Policy) -> list[str]:
    """Names of the ops of a policy that have no planar form."""
    kinds = [type(step.op) for step in policy.steps[1:]]
    return [kind.__name__ for kind in kinds if kind not in APPLY and kind not in FLIPS]


def chain(policy: Policy, taps: int, dtype: torch.dtype) -> Graph:
    """The whole policy as one function of an arena's tensors, (R, 3, h, w) out.

    taps: per axis, a bound; see `planar_crop.tap_count`.
    """
    later = [
        (APPLY[type(step.op)], step.op, step.columns)
        for step in policy.steps[1:]
        if type(step.op) not in FLIPS
    ]

    def views(pixels_N: Tensor, offsets_R: Tensor, sides_R2: Tensor, table_RP: Tensor) -> Tensor:
        planes = crop(policy, taps, pixels_N, offsets_R, sides_R2, table_RP)
        for apply, op, columns in later:
            planes = apply(op, planes, table_RP[:, columns])
        return torch.stack([plane.to(dtype) for plane in planes], dim=1)

    return views


def select(chosen: Tensor, yes: Planes, no: Planes) -> Planes:
    """Plane by plane `torch.where`."""
    r, g, b = (torch.where(chosen, y, n) for y, n in zip(yes, no, strict=True))
    return r, g, b


def luma(planes: Planes) -> Tensor:
    """Kornia's grey, BT.601; torchvision's red weighs 0.2989."""
    r, g, b = planes
    return 0.299 * r + 0.587 * g + 0.114 * b


def grayscale(op: Any, planes: Planes, rows_RP: Tensor) -> Planes:
    grey = luma(planes)
    return select(rowwise(rows_RP[:, 0]) > 0, (grey, grey, grey), planes)


def color_jitter(op: Any, planes: Planes, rows_RP: Tensor) -> Planes:
    """Each row in its own order; contrast turns about the mean of what precedes it in that order.

    Two passes, so that there is one reduction: up to the contrast for the mean, then everything.
    """
    assert isinstance(op, ops.ColorJitter)
    fixed = op.ranges()[CONTRAST] == (1.0, 1.0)
    mean = None if fixed else contrast_mean(op, planes, rows_RP)
    jittered = planes
    for place in range(4):
        jittered = adjust(op, jittered, rows_RP, place, mean)
    return select(rowwise(rows_RP[:, 0]) > 0, jittered, planes)


def contrast_mean(op: ops.ColorJitter, planes: Planes, rows_RP: Tensor) -> Tensor:
    """(R, 1, 1): the mean grey of each view as its contrast finds it."""
    # Not `planes` as they are: subexpressions shared with the second pass would be kept in memory.
    # Gated rows alone use the mean, so nothing else changes.
    on = rowwise(rows_RP[:, 0]) > 0
    seen = each(lambda plane: torch.where(on, plane, 0.0), planes)
    done = torch.zeros_like(rows_RP[:, 0]) > 0
    for place in range(3):
        done = done | (rows_RP[:, 5 + place] == CONTRAST)
        seen = select(rowwise(done), seen, adjust(op, seen, rows_RP, place, None))
    return luma(seen).mean((-2, -1))[:, None, None]  # axis by axis costs 1 MB per view more


def adjust(
    op: ops.ColorJitter, planes: Planes, rows_RP: Tensor, place: int, mean: Tensor | None
) -> Planes:
    """The factor that each row has at a place of its order: x * f + pivot * (1 - f), or the hue."""
    factor = rowwise(rows_RP[:, 5 + place])
    by = torch.ones_like(factor)
    for kind in (BRIGHTNESS, CONTRAST, SATURATION):
        by = torch.where(factor == kind, rowwise(rows_RP[:, 1 + kind]), by)
    pivot = torch.where(factor == SATURATION, luma(planes), 0.0)
    if mean is not None:
        pivot = torch.where(factor == CONTRAST, mean, pivot)
    moved = each(lambda plane: (plane * by + pivot * (1 - by)).clamp(0, 1), planes)
    if op.ranges()[HUE] == (0.0, 0.0):
        return moved
    return select(factor == HUE, turn_hue(planes, rowwise(rows_RP[:, 1 + HUE])), moved)


def turn_hue(planes: Planes, turns: Tensor) -> Planes:
    """Hue in closed form: no HSV picture is made."""
    r, g, b = planes
    most, least = r.maximum(g).maximum(b), r.minimum(g).minimum(b)
    chroma = most - least
    unit = torch.where(chroma == 0, 1.0, chroma)
    sector = torch.where(
        most == r, (g - b) / unit, torch.where(most == g, 2 + (b - r) / unit, 4 + (r - g) / unit)
    )
    sixths = sector + 6 * turns

    def channel(n: int) -> Tensor:
        k = (sixths + n).remainder(6)
        return most - chroma * k.minimum(4 - k).clamp(0, 1)

    return channel(5), channel(3), channel(1)


def solarize(op: Any, planes: Planes, rows_RP: Tensor) -> Planes:
    on, threshold = (rowwise(values) for values in rows_RP.unbind(-1))
    return each(lambda x: torch.where((on > 0) & (x >= threshold), 1 - x, x), planes)


def normalize(op: Any, planes: Planes, rows_RP: Tensor) -> Planes:
    assert isinstance(op, ops.Normalize)
    r, g, b = (
        (plane - mean) / std for plane, mean, std in zip(planes, op.mean, op.std, strict=True)
    )
    return r, g, b


def gaussian_blur(op: Any, planes: Planes, rows_RP: Tensor) -> Planes:
    """Separable; a row whose gate is off gets the unit kernel, which changes no bit."""
    assert isinstance(op, ops.RandomGaussianBlur)
    vertical, horizontal = (gaussian(rows_RP, size // 2) for size in op.kernel_size)
    return each(lambda plane: smooth(smooth(plane, horizontal, -1), vertical, -2), planes)


def gaussian(rows_RP: Tensor, radius: int) -> list[Tensor]:
    """Weights (R, 1, 1) at distances 0 .. radius; Kornia's, normalised over both sides."""
    on, sigma = (rowwise(values) for values in rows_RP.unbind(-1))
    weights = [torch.exp(-0.5 * (t / sigma) ** 2) for t in range(radius + 1)]
    both = weights[0] + 2 * sum_of(weights[1:]) if radius else weights[0]
    return [
        torch.where(on > 0, weight / both, 1.0 if t == 0 else 0.0)
        for t, weight in enumerate(weights)
    ]


def smooth(plane: Tensor, weights: list[Tensor], dim: int) -> Tensor:
    """Symmetric filter along one axis, reflecting at the border."""
    radius, size = len(weights) - 1, plane.shape[dim]
    pads = (radius, radius, 0, 0) if dim == -1 else (0, 0, radius, radius)
    padded = F.pad(plane, pads, mode="reflect")
    terms = [weights[0] * plane]
    for t in range(1, radius + 1):
        before = padded.narrow(dim, radius - t, size)
        after = padded.narrow(dim, radius + t, size)
        terms.append(weights[t] * (before + after))
    return sum_of(terms)


APPLY: Mapping[type, Callable[[Any, Planes, Tensor], Planes]] = MappingProxyType({
    ops.RandomGrayscale: grayscale,
    ops.ColorJitter: color_jitter,
    ops.RandomGaussianBlur: gaussian_blur,
    ops.RandomSolarize: solarize,
    ops.Normalize: normalize,
})  # fmt: skip
