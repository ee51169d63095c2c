"""The triton executor: a few kernels per view group, on CUDA under Linux.

It makes policies of the usual order: a crop, flips anywhere, ColorJitter, RandomGrayscale,
RandomGaussianBlur, RandomSolarize, Normalize, each at most once; `unsupported` says so beforehand.
Each box has its own number of taps, and nothing is compiled anew when boxes or canvases change.

A view passes scratch memory between its kernels: float32 for float32 views, which are within 0.05
of an 8-bit level of `kornia`'s, and float16 for views of half precision. Those are within 1 level
before they are rounded to their own type, except where a solarize threshold falls between the two.

Tested by Triton's interpreter on the CPU, compiled for sm_90, and on CUDA by `test_gpu.py`; there
chains with a contrast last failed, before its mean was taken of what is stored (tools/LOG.md).
"""

from collections.abc import Callable, Sequence
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
import triton
from torch import Tensor

from .. import ops
from ..draws import Policy
from . import triton_colour, triton_kernels, triton_tables
from .planar_crop import RADIUS
from .triton_tables import Inputs, Span, unsupported

__all__ = ["prepare", "unsupported"]

F32 = npt.NDArray[np.float32]

TILE = MappingProxyType({"TALL": 16, "WIDE": 32})  # pixels of a program of the crop; by timing
FLAT = 1024  # pixels of a program of colour and blur
WARPS = 4
SCRATCH = 1 << 28  # bytes at once, unless one view needs more


def prepare(
    policy: Policy,
    canvases: Sequence[Tensor],
    table_VBP: F32,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Callable[[], Tensor]:
    """Upload, and return what makes the views: see `executors.Prepare`."""
    scratch = torch.float32 if dtype == torch.float32 else torch.float16
    given = triton_tables.inputs(
        policy, canvases, table_VBP, device=device, itemsize=scratch.itemsize, limit=SCRATCH
    )
    views, batch, _ = table_VBP.shape

    def run() -> Tensor:
        out = given.table_RP.new_empty((views * batch, 3, *policy.crop.size), dtype=dtype)
        # kernels start on the current device; -1 leaves it, for the interpreter on the CPU
        with torch.cuda.device(device if device.type == "cuda" else -1):
            for span in given.spans:
                launch(policy, given, span, scratch, out[span.first : span.last])
        return out.view(views, batch, 3, *policy.crop.size)

    return run


def launch(
    policy: Policy, given: Inputs, span: Span, scratch: torch.dtype, out_RCHW: Tensor
) -> None:
    """Start the kernels of a span of views."""
    table_RP = given.table_RP[span.first : span.last]
    sharp_RCHW = torch.empty_like(out_RCHW, dtype=scratch)
    crop(policy, given, span, sharp_RCHW)
    colour(policy, sharp_RCHW, table_RP, out_RCHW)
    for step in policy.steps:
        if isinstance(step.op, ops.RandomGaussianBlur):
            blur(policy, step.op, sharp_RCHW, table_RP, out_RCHW)


def crop(policy: Policy, given: Inputs, span: Span, sharp_RCHW: Tensor) -> None:
    """Start the crop of a span into `sharp_RCHW`."""
    op, (height, width), views = policy.crop, policy.crop.size, len(sharp_RCHW)
    places, table = (t[span.first : span.last] for t in (given.places_RK, given.table_RP))
    tiles = tiles_of(height, width)
    shape = {"HEIGHT": height, "WIDTH": width, **TILE, "num_warps": WARPS}
    if isinstance(op, ops.RandomCrop):
        triton_kernels.cut[(tiles, views)](given.pixels_N, places, table, sharp_RCHW, **shape)
        return
    half_N = sharp_RCHW.new_empty(span.values)
    kernel = {"RADIUS": RADIUS[op.resample], "ANTIALIAS": op.antialias}
    triton_kernels.across[(tiles_of(span.tallest, width), views)](
        given.pixels_N, places, table, half_N, WIDTH=width, **kernel, **TILE, num_warps=WARPS
    )
    triton_kernels.down[(tiles, views)](half_N, places, table, sharp_RCHW, **kernel, **shape)


def colour(policy: Policy, sharp_RCHW: Tensor, table_RP: Tensor, out_RCHW: Tensor) -> None:
    """Start the colours, into `out_RCHW` or, where a blur comes between, back into `sharp_RCHW`."""
    views, _, height, width = out_RCHW.shape
    size, means_R = height * width, table_RP.new_empty(views)
    grid, tile = (triton.cdiv(size, FLAT), views), {"SIZE": size, "TILE": FLAT, "num_warps": WARPS}
    if any(isinstance(step.op, ops.ColorJitter) for step in policy.steps):
        greys_RN = table_RP.new_empty((views, size))
        triton_colour.grey[grid](sharp_RCHW, table_RP, greys_RN, **tile)
        means_R = greys_RN.mean(1)
    scale = normalisation(policy)
    triton_colour.colour[grid](sharp_RCHW, table_RP, means_R, out_RCHW, *scale, **tile)


def blur(
    policy: Policy,
    op: ops.RandomGaussianBlur,
    sharp_RCHW: Tensor,
    table_RP: Tensor,
    out_RCHW: Tensor,
) -> None:
    """Start both axes of the Gaussian, and what comes after it."""
    views, _, height, width = out_RCHW.shape
    soft_RCHW, scale = torch.empty_like(sharp_RCHW), normalisation(policy)
    tall, wide = (size // 2 for size in op.kernel_size)
    shape = {"HEIGHT": height, "WIDTH": width, "TILE": FLAT, "num_warps": WARPS}
    axis = triton_kernels.blur[(triton.cdiv(height * width, FLAT), 3 * views)]
    axis(sharp_RCHW, table_RP, soft_RCHW, *scale, **shape, REACH=wide, DOWN=False)
    axis(soft_RCHW, table_RP, out_RCHW, *scale, **shape, REACH=tall, DOWN=True)


def tiles_of(height: int, width: int) -> int:
    """Programs that cover so many pixels."""
    return -(-height // TILE["TALL"]) * -(-width // TILE["WIDE"])


def normalisation(policy: Policy) -> tuple[float, ...]:
    """Mean and std of r, g, b."""
    for step in policy.steps:
        if isinstance(step.op, ops.Normalize):
            return (*step.op.mean, *step.op.std)
    return (0.0, 0.0, 0.0, 1.0, 1.0, 1.0)
