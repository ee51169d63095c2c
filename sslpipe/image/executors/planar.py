"""The ops as pure functions of three planes r, g, b of (R, h, w) float32; made to be compiled.

Planes, because Inductor fuses the colour ops on them into one pass over the pixels (0.90 MB per
view of 224 px), and with a channel dimension it does not (25.6 MB; both are its own count on the
CPU). No function draws, reads the host, writes in place or makes a tensor on another device.

A flip commutes with every op here, so flips are folded into what the crop reads.

Letters: R = V * B rows, each one view of one sample; N output pixels along one axis; T taps.
"""

import functools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..draws import Policy
from .arena import rung

Planes = tuple[Tensor, Tensor, Tensor]
Graph = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Load = Callable[[Tensor, Tensor], Planes]
Tap = tuple[Tensor, Tensor]  # where it reads, counted from the start of the box; its weight
Resized = ops.RandomResizedCrop | ops.CenterCrop

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
RADIUS: Mapping[str, int] = MappingProxyType({"bilinear": 1, "bicubic": 2})
DIRECT = 4  # up to so many taps per axis, two passes cost more traffic than they save reads


def supports(policy: Policy) -> bool:
    """Whether every op has a planar form, and every blur kernel fits its view."""
    return all(supports_op(policy, step.op) for step in policy.steps[1:])


def supports_op(policy: Policy, op: ops.Op) -> bool:
    if isinstance(op, ops.RandomGaussianBlur):
        sides = zip(op.kernel_size, policy.crop.size, strict=True)
        return all(kernel // 2 < side for kernel, side in sides)
    return type(op) in APPLY or type(op) in FLIPS


def tap_count(policy: Policy, table_VBP: npt.NDArray[np.float32]) -> int:
    """Taps per axis that the largest box of the table needs, rounded up to a rung."""
    crop = policy.crop
    if isinstance(crop, ops.RandomCrop):
        return 1
    height, width = crop.size
    w, h = table_VBP[..., 2].max() / width, table_VBP[..., 3].max() / height
    scale = max(1.0, float(w), float(h)) if crop.antialias else 1.0
    return rung(math.ceil(2 * RADIUS[crop.resample] * scale))


def chain(policy: Policy, taps: int, dtype: torch.dtype) -> Graph:
    """The whole policy as one function of an arena's tensors, (R, 3, h, w) out.

    taps: per axis, a bound; see `tap_count`.
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


def each(function: Callable[[Tensor], Tensor], planes: Planes) -> Planes:
    r, g, b = planes
    return function(r), function(g), function(b)


def select(chosen: Tensor, yes: Planes, no: Planes) -> Planes:
    """Plane by plane `torch.where`."""
    r, g, b = (torch.where(chosen, y, n) for y, n in zip(yes, no, strict=True))
    return r, g, b


def rowwise(values_R: Tensor) -> Tensor:
    """(R,) -> (R, 1, 1), to meet planes."""
    return values_R[:, None, None]


# Crop, resize and flips


def crop(
    policy: Policy,
    taps: int,
    pixels_N: Tensor,
    offsets_R: Tensor,
    sides_R2: Tensor,
    table_RP: Tensor,
) -> Planes:
    """The first op and all flips: planes in [0, 1]."""
    op = policy.crop
    x, y, w, h = (rowwise(v) for v in table_RP[:, policy.steps[0].columns].unbind(-1))
    height, width = op.size
    right = outputs(width, mirrored(policy, ops.RandomHorizontalFlip, table_RP))[:, None, :]
    down = outputs(height, mirrored(policy, ops.RandomVerticalFlip, table_RP))[:, :, None]
    bottom, edge = (rowwise(side) - 1 for side in sides_R2.unbind(-1))

    def load(i: Tensor, j: Tensor) -> Planes:
        """Levels at row i (R, h, 1) and column j (R, 1, w) of the canvas, whole numbers."""
        at = rowwise(offsets_R) + 3 * (i.long() * (edge + 1) + j.long())
        return pixels_N[at].float(), pixels_N[at + 1].float(), pixels_N[at + 2].float()

    if isinstance(op, ops.RandomCrop):
        return cut(load, y + down, x + right, bottom, edge)
    along, across = axis(down, h, height, op, taps), axis(right, w, width, op, taps)
    if taps <= DIRECT:
        summed = weigh(along, lambda i: weigh(across, lambda j: load(y + i, x + j)))
    else:
        highest = math.ceil(taps / (2 * RADIUS[op.resample]) * height)  # box that taps suffice for
        summed = two_passes(along, across, lambda i, j: load(y + i, x + j), h, highest)
    scale = 255 * total(along) * total(across)
    return each(lambda plane: (plane / scale).clamp(0, 1), summed)  # bicubic overshoots


def mirrored(policy: Policy, flip: type[ops.Op], table_RP: Tensor) -> Tensor:
    """(R,) bool: an odd number of the flips of this kind are on."""
    on = torch.zeros_like(table_RP[:, 0])
    for step in policy.steps:
        if isinstance(step.op, flip):
            on = on + table_RP[:, step.start]
    return on.remainder(2) > 0


def outputs(side: int, mirror_R: Tensor) -> Tensor:
    """(R, N): the output pixels 0 .. side - 1, backwards where mirrored."""
    at = torch.arange(side, dtype=torch.float32, device=mirror_R.device)
    return torch.where(mirror_R[:, None], side - 1 - at, at)


def cut(load: Load, i: Tensor, j: Tensor, bottom: Tensor, edge: Tensor) -> Planes:
    """Canvas pixels as they are; zero outside."""
    row, column = i.clamp(min=0).minimum(bottom), j.clamp(min=0).minimum(edge)
    inside = (row == i) & (column == j)
    return each(lambda plane: torch.where(inside, plane / 255, 0.0), load(row, column))


def axis(at: Tensor, length: Tensor, side: int, op: Resized, taps: int) -> list[Tap]:
    """The taps of `F.interpolate` from boxes of a length to `side` output pixels, on one axis.

    Antialiased: a triangle or cubic (a = -0.5) stretched by the scale, cut off at the box. Not
    antialiased: a = -0.75, and the box's border repeats. Weights are not normalised.
    """
    scale = length / side
    stretch = scale.clamp(min=1) if op.antialias else torch.ones_like(scale)
    centre = (at + 0.5) * scale
    first = (centre - RADIUS[op.resample] * stretch + 0.5).floor()
    found = []
    for tap in range(taps):
        i = first + tap
        weight = kernel(((i + 0.5 - centre) / stretch).abs(), op)
        if op.antialias:
            weight = torch.where((i >= 0) & (i < length), weight, 0.0)
        found.append((i.clamp(min=0).minimum(length - 1), weight))
    return found


def kernel(t: Tensor, op: Resized) -> Tensor:
    """The weight at distance t >= 0, in units of the stretch."""
    if op.resample == "bilinear":
        return (1 - t).clamp(min=0)
    a = -0.5 if op.antialias else -0.75  # torch's two cubics: PIL's and OpenCV's
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = (((t - 5) * t + 8) * t - 4) * a
    return torch.where(t < 1, near, torch.where(t < 2, far, 0.0))


def weigh(taps: list[Tap], read: Callable[[Tensor], Planes]) -> Planes:
    """The sum of weight * what is read, over the taps."""
    terms = [[weight * plane for plane in read(index)] for index, weight in taps]
    r, g, b = (sum_of(list(plane)) for plane in zip(*terms, strict=True))
    return r, g, b


def sum_of(terms: list[Tensor]) -> Tensor:
    """Left to right."""
    return functools.reduce(torch.add, terms)


def total(taps: list[Tap]) -> Tensor:
    """The sum of the weights."""
    return sum_of([weight for _, weight in taps])


def two_passes(
    along: list[Tap],
    across: list[Tap],
    load: Callable[[Tensor, Tensor], Planes],
    h: Tensor,
    highest: int,
) -> Planes:
    """Across into `highest` rows of the box, then along: 2 T reads per pixel instead of T * T."""
    rows = torch.arange(highest, dtype=torch.float32, device=h.device)[None, :, None]
    inside = rows.minimum(h - 1)
    shrunk = weigh(across, lambda j: load(inside, j))

    def read(i: Tensor) -> Planes:
        at = i.long().expand(-1, -1, shrunk[0].shape[-1])
        return each(lambda plane: plane.gather(1, at), shrunk)

    return weigh(along, read)


# Colour


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
    seen = planes
    done = torch.zeros_like(rows_RP[:, 0]) > 0
    for place in range(3):
        done = done | (rows_RP[:, 5 + place] == CONTRAST)
        seen = select(rowwise(done), seen, adjust(op, seen, rows_RP, place, None))
    # rows first: no view is then summed in an order that depends on how many views there are
    return luma(seen).mean(-1).mean(-1)[:, None, None]


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


# Blur


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


FLIPS = (ops.RandomHorizontalFlip, ops.RandomVerticalFlip)
APPLY: Mapping[type, Callable[[Any, Planes, Tensor], Planes]] = MappingProxyType({
    ops.RandomGrayscale: grayscale,
    ops.ColorJitter: color_jitter,
    ops.RandomGaussianBlur: gaussian_blur,
    ops.RandomSolarize: solarize,
    ops.Normalize: normalize,
})  # fmt: skip
