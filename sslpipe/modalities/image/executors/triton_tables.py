"""What the triton executor's kernels read besides pixels, made on the host for all views at once.

    parameters, a row of COLUMNS per view     float32: what it drew, in the usual order of the ops
    places, a row of PLACES per view          int64: where its canvas lies, and its scratch memory

A box of h rows leaves 3 h WIDTH values of scratch memory, whatever the other boxes are: scratch is
packed without gaps, and views go in spans whose scratch together is limited.

Letters: R = V * B rows, each one view of one sample; B canvases.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ....device import arena
from ....device.ragged import Ragged
from .. import ops
from ..draws import Policy
from .planar_crop import FLIPS

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

USUAL: Mapping[type[ops.Op], int] = MappingProxyType({  # op -> its first column; in this order
    ops.ColorJitter: 6,
    ops.RandomGrayscale: 15,
    ops.RandomGaussianBlur: 16,
    ops.RandomSolarize: 18,
    ops.Normalize: 20,
})  # fmt: skip
COLUMNS = (
    "x", "y", "w", "h", "hflip", "vflip",
    "jitter", "brightness", "contrast", "saturation", "hue", "order0", "order1", "order2", "order3",
    "grey", "blur", "sigma", "solarize", "threshold",
)  # fmt: skip
PLACES = ("canvas", "height", "width", "scratch")  # bytes, pixels, pixels, values
EVEN = 16  # values: scratch of a view begins at a multiple, so that kernels may load eight at once
MOST_ROWS = 65535 // 3  # views of a launch: CUDA's grid has so many planes


@dataclass(frozen=True, slots=True)
class Span:
    """Says which views go together, and how large their scratch memory is."""

    first: int
    last: int  # not among them
    values: int  # scratch of `across`
    tallest: int  # rows of the highest box


@dataclass(frozen=True, slots=True)
class Inputs:
    """What all launches of a group read."""

    pixels_N: Tensor  # uint8 on the device: canvases of (H, W, 3)
    places_RK: Tensor  # int64
    table_RP: Tensor  # float32
    spans: tuple[Span, ...]


def unsupported(policy: Policy) -> list[str]:
    """Names of the ops that stand out of the usual order, flips aside, or are not among them."""
    names, last = [], -1
    for step in policy.steps[1:]:
        kind = type(step.op)
        if kind in FLIPS:
            continue
        place = USUAL.get(kind, -1)
        if place <= last:
            names.append(kind.__name__)
        last = max(place, last)
    return names


def usual_table(policy: Policy, table_VBP: F32) -> F32:
    """The table with COLUMNS: what a policy lacks is off, and flips of a kind are one."""
    usual = np.zeros((*table_VBP.shape[:2], len(COLUMNS)), dtype=np.float32)
    usual[..., :4] = table_VBP[..., policy.steps[0].columns]
    for step in policy.steps[1:]:
        if type(step.op) in FLIPS:
            usual[..., 4 + FLIPS.index(type(step.op))] += table_VBP[..., step.start]
        else:
            start = USUAL[type(step.op)]
            usual[..., start : start + len(step.op.columns)] = table_VBP[..., step.columns]
    usual[..., 4:6] %= 2
    return usual


def inputs(
    policy: Policy,
    canvases: Sequence[Tensor],
    table_VBP: F32,
    *,
    device: torch.device,
    itemsize: int,
    limit: int,
) -> Inputs:
    """Upload the tables in one copy, and the canvases unless they are there.

    itemsize: bytes of a value of scratch memory. limit: bytes of it that a span may take; one view
    may take more.
    """
    usual_RP = usual_table(policy, table_VBP).reshape(-1, len(COLUMNS))
    pixels_N, offsets_B, sides_B2 = packed(canvases, device)
    places_RK = np.empty((len(usual_RP), len(PLACES)), dtype=np.int64)
    by_view_VBK = places_RK.reshape(*table_VBP.shape[:2], len(PLACES))
    by_view_VBK[..., 0], by_view_VBK[..., 1:3] = offsets_B, sides_B2
    resized = not isinstance(policy.crop, ops.RandomCrop)
    heights_R = usual_RP[:, 3].astype(np.int64) * resized
    height, width = policy.crop.size
    # a view is kept sharp, and soft between the two axes of its blur
    places_RK[:, 3], spans = plan(heights_R, width, 2 * 3 * height * width, itemsize, limit)
    host = np.concatenate([places_RK.view(np.uint8).ravel(), usual_RP.view(np.uint8).ravel()])
    there = upload(torch.from_numpy(host), device)
    places = there[: places_RK.nbytes].view(torch.int64).view(places_RK.shape)
    table = there[places_RK.nbytes :].view(torch.float32).view(usual_RP.shape)
    return Inputs(pixels_N, places, table, spans)


def packed(canvases: Sequence[Tensor], device: torch.device) -> tuple[Tensor, I64, I64]:
    """The canvases in one flat buffer on the device, where each begins, and its height and width.

    Those that lie in one buffer on a device stay where they are; a Ragged is not looked into.
    """
    if not isinstance(canvases, Ragged) and canvases[0].device.type == "cuda":
        flat_N, offsets_B = arena.together(canvases)
        return flat_N, offsets_B, np.array([c.shape[:2] for c in canvases], dtype=np.int64)
    ragged = canvases if isinstance(canvases, Ragged) else Ragged.of(canvases)
    return upload(ragged.flat_N, device), ragged.offsets_B, ragged.shapes_BD[:, :2]


def upload(flat_N: Tensor, device: torch.device) -> Tensor:
    """The same bytes on the device; from the host by pinned memory, without waiting for it."""
    if device.type != "cuda" or flat_N.device.type == "cuda":
        return flat_N.to(device)
    return arena.pinned(flat_N).to(device, non_blocking=True)


def plan(
    rows_R: I64, width: int | I64, besides: int, itemsize: int, limit: int
) -> tuple[I64, tuple[Span, ...]]:
    """Where the scratch of each view begins within its span, and the spans.

    rows_R: of `width` pixels of 3 values that the pass along x makes of each view. besides: values
    of a view that its span takes too.
    """
    values_R = -(-3 * width * rows_R // EVEN) * EVEN
    ends_R = np.cumsum(values_R)
    bytes_R = np.cumsum((values_R + besides) * itemsize)
    offsets_R, spans, first = ends_R - values_R, [], 0
    while first < len(ends_R):
        before = bytes_R[first - 1] if first else 0
        last = int(np.searchsorted(bytes_R, before + limit, side="right"))
        last = min(max(last, first + 1), first + MOST_ROWS)
        begin = int(offsets_R[first])
        spans.append(
            Span(first, last, int(ends_R[last - 1]) - begin, int(rows_R[first:last].max()))
        )
        offsets_R[first:last] -= begin
        first = last
    return offsets_R, tuple(spans)
