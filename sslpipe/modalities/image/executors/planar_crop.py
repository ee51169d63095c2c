"""The crop on planes: box, antialiased resize and flips in one gather from a ragged buffer.

A flip commutes with every planar op, so all flips of a policy are folded into what is read.

Letters: R = V * B rows, each one view of one sample; N output pixels along one axis; T taps.
"""

import functools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ....device.arena import rung
from .. import ops
from ..draws import Policy

Planes = tuple[Tensor, Tensor, Tensor]
Load = Callable[[Tensor, Tensor], Planes]
Tap = tuple[Tensor, Tensor]  # where it reads, counted from the start of the box; its weight
Resized = ops.RandomResizedCrop | ops.MultiScaleCrop | ops.CenterCrop | ops.Resize

FLIPS = (ops.RandomHorizontalFlip, ops.RandomVerticalFlip)
RADIUS: Mapping[str, int] = MappingProxyType({"bilinear": 1, "bicubic": 2})
DIRECT = 4  # up to so many taps per axis, two passes cost more traffic than they save reads


def tap_count(policy: Policy, table_VBP: npt.NDArray[np.float32]) -> int:
    """Taps per axis that the largest box of the table needs, rounded up to a rung."""
    crop = policy.crop
    if isinstance(crop, ops.RandomCrop):
        return 1
    height, width = crop.size
    w, h = table_VBP[..., 2].max() / width, table_VBP[..., 3].max() / height
    scale = max(1.0, float(w), float(h)) if crop.antialias else 1.0
    return rung(math.ceil(2 * RADIUS[crop.resample] * scale))


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


def each(function: Callable[[Tensor], Tensor], planes: Planes) -> Planes:
    r, g, b = planes
    return function(r), function(g), function(b)


def rowwise(values_R: Tensor) -> Tensor:
    """(R,) -> (R, 1, 1), to meet planes."""
    return values_R[:, None, None]


def sum_of(terms: list[Tensor]) -> Tensor:
    """Add planes from left to right, so that the rounding is always the same."""
    return functools.reduce(torch.add, terms)
