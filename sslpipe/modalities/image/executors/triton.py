"""The triton executor: two kernels per view group (four with blur), on CUDA under Linux.

It makes policies of the usual order: a crop, flips anywhere, ColorJitter, RandomGrayscale,
RandomGaussianBlur, RandomSolarize, Normalize, each at most once; `unsupported` says so beforehand.
Each box has its own number of taps, and nothing is compiled anew when boxes or canvases change.

Tested by Triton's interpreter on the CPU, and compiled for sm_90. It has not run on a GPU.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
import triton
from torch import Tensor

from ....device.arena import Arena, upload
from .. import ops
from ..draws import Policy
from . import triton_kernels
from .planar_crop import FLIPS, RADIUS

F32 = npt.NDArray[np.float32]

TILE = 512  # pixels of a program; by registers (80 to 92 on sm_90, no spills), not yet by timing
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


def prepare(
    policy: Policy,
    canvases: Sequence[Tensor],
    table_VBP: F32,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Callable[[], Tensor]:
    """Upload, and return what makes the views: see `executors.Prepare`."""
    arena = upload(canvases, usual_table(policy, table_VBP), device=device)
    views, batch, _ = table_VBP.shape

    def run() -> Tensor:
        # kernels start on the current device; -1 leaves it, for the interpreter on the CPU
        with torch.cuda.device(device if device.type == "cuda" else -1):
            return launch(policy, arena, dtype).view(views, batch, 3, *policy.crop.size)

    return run


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


def launch(policy: Policy, arena: Arena, dtype: torch.dtype) -> Tensor:
    """Start the kernels; (R, 3, h, w)."""
    found = {type(step.op): step.op for step in policy.steps}
    height, width = policy.crop.size
    rows, tiles = len(arena.table_RP), triton.cdiv(height * width, TILE)
    out = arena.table_RP.new_empty((rows, 3, height, width), dtype=dtype)
    reads = (arena.pixels_N, arena.offsets_R, arena.sides_R2, arena.table_RP)
    means_R = arena.table_RP.new_empty(rows)
    shape = {"HEIGHT": height, "WIDTH": width, "TILE": TILE}
    box = {"RADIUS": radius(policy), "ANTIALIAS": getattr(policy.crop, "antialias", True)}
    if ops.ColorJitter in found:
        triton_kernels.stats[(rows,)](*reads, means_R, **shape, **box)
    scale = normalisation(policy)
    blurring = found.get(ops.RandomGaussianBlur)
    sharp = out if blurring is None else torch.empty_like(out, dtype=torch.float32)
    triton_kernels.colour[(rows, tiles)](
        *reads, means_R, sharp, *scale, **shape, **box, FINISH=blurring is None
    )
    if isinstance(blurring, ops.RandomGaussianBlur):
        half = torch.empty_like(sharp)
        tall, wide = (size // 2 for size in blurring.kernel_size)
        grid, table_RP = (3 * rows, tiles), arena.table_RP
        triton_kernels.blur[grid](sharp, table_RP, half, *scale, **shape, REACH=wide, DOWN=False)
        triton_kernels.blur[grid](half, table_RP, out, *scale, **shape, REACH=tall, DOWN=True)
    return out


def radius(policy: Policy) -> int:
    """Of the resampling kernel; 0 cuts."""
    crop = policy.crop
    return 0 if isinstance(crop, ops.RandomCrop) else RADIUS[crop.resample]


def normalisation(policy: Policy) -> tuple[float, ...]:
    """Mean and std of r, g, b."""
    for step in policy.steps:
        if isinstance(step.op, ops.Normalize):
            return (*step.op.mean, *step.op.std)
    return (0.0, 0.0, 0.0, 1.0, 1.0, 1.0)
