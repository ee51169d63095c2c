"""Patches of a picture in raster order: their positions, their grid, and choices of them.

D features, N patches, S tokens or chosen patches, T = 1 + N tokens, the class token first.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..batch import ViewSpec

# how positions are brought to the grid of smaller crops; the two without antialias are official
Resample = Literal["antialias", "bicubic", "bicubic_offset"]
OFFSET = 0.1  # patches; facebookresearch/dino, issue 8


def along_axes(patch_size: int | tuple[int, ...], axes: int) -> tuple[int, ...]:
    """Give the sides of a patch along so many axes; one number stands for all of them."""
    return (patch_size,) * axes if isinstance(patch_size, int) else patch_size


def sincos(dim: int, grid: tuple[int, ...]) -> Tensor:
    """Make fixed positions, (1, 1 + N, dim) float32; zero for the class token.

    Of a plane they are MAE's, of other grids VideoMAE's.

    Raises:
        ValueError: `dim` is no multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"width {dim} of a sin-cos embedding must be a multiple of 4; change it")
    table_ND = plane_sincos(dim, grid) if len(grid) == 2 else index_sincos(dim, math.prod(grid))
    return F.pad(table_ND, (0, 0, 1, 0)).float()[None]


def index_sincos(dim: int, count: int) -> Tensor:
    """Encode the number of a patch in raster order, whatever its axes: (N, dim) float64.

    MCG-NJU/VideoMAE, modeling_finetune.py, get_sinusoid_encoding_table: sines in even channels,
    cosines in odd ones.
    """
    omega = 10000.0 ** -(torch.arange(dim // 2, dtype=torch.float64) / (dim // 2))
    angles = torch.arange(count, dtype=torch.float64)[:, None] * omega
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)


def plane_sincos(dim: int, grid: tuple[int, ...]) -> Tensor:
    """Encode column and row, (N, dim) float64.

    facebookresearch/mae, util/pos_embed.py: the first half of the channels encodes the COLUMN
    ("here w goes first"), the second the row; each half is sines, then cosines.
    """
    rows, columns = (torch.arange(n, dtype=torch.float64) for n in grid)
    row_N, column_N = (axis.flatten() for axis in torch.meshgrid(rows, columns, indexing="ij"))
    omega = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angles = [position[:, None] * omega for position in (column_N, row_N)]
    return torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)


def resampled(
    positions_1ND: Tensor, old: tuple[int, int], new: tuple[int, int], *, offset: bool
) -> Tensor:
    """Bring positions to another grid by bicubic interpolation without antialias: (1, N, D).

    `old`, `new`: rows and columns of patches; interpolated in float32, the dtype stays.
    `offset`: as DINO, iBOT and DINOv2 do (vision_transformer.py, interpolate_pos_encoding), which
    stretch the old grid to new + .1 patches and keep the first `new`; False: as MSN (deit.py).
    """
    map_1Dhw = on_grid(positions_1ND.float(), old)
    if offset:
        factors = [(n + OFFSET) / o for n, o in zip(new, old, strict=True)]
        made = F.interpolate(map_1Dhw, scale_factor=factors, mode="bicubic")
    else:
        made = F.interpolate(map_1Dhw, size=new, mode="bicubic")
    return made.flatten(2).mT.to(positions_1ND.dtype)


def on_grid(patches_BND: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Lay patches on their grid: (B, D, rows, columns)."""
    return patches_BND.mT.reshape(len(patches_BND), -1, *grid)


def chosen_tokens(tokens_BTD: Tensor, visible_BS: Tensor) -> Tensor:
    """Take the class token and the patches that are visible: (M * B, 1 + S, D), mask by mask.

    `visible_BS`: int64 patch numbers, M * B rows for B images; M is 1 where there is one choice.
    """
    index_MBSD = visible_BS.view(-1, len(tokens_BTD), visible_BS.shape[1], 1)
    index_MBSD = index_MBSD.expand(-1, -1, -1, tokens_BTD.shape[2])
    tokens_MBTD = tokens_BTD.expand(len(index_MBSD), -1, -1, -1)
    patches_MBSD = tokens_MBTD[:, :, 1:].gather(2, index_MBSD)
    return torch.cat([tokens_MBTD[:, :, :1], patches_MBSD], dim=2).flatten(0, 1)


def visible_first(hidden_BN: Tensor) -> Tensor:
    """Order patch numbers, visible before hidden, each in raster order: (B, N) int64.

    A stable sort and not boolean indexing, whose size would have to come back to the host.
    """
    return hidden_BN.to(torch.uint8).argsort(dim=1, stable=True)


def take(tokens_BSD: Tensor, index_BN: Tensor) -> Tensor:
    """Take tokens in the order of `index_BN`, int64: (B, N, D)."""
    return tokens_BSD.gather(1, index_BN[:, :, None].expand(-1, -1, tokens_BSD.shape[2]))


def grid_size(view: ViewSpec) -> int | tuple[int, int]:
    """Tell timm's img_size: the height of images, frequencies and frames of spectrograms.

    Raises:
        ContractError: the views are neither.
    """
    if view.axes == "CTHW":
        return view.size("H"), view.size("W")
    return (view.size("F"), view.size("T")) if view.axes == "CFT" else view.size("H")


def plane_patch(patch_size: int | tuple[int, ...] | None, view: ViewSpec) -> int | None:
    """Tell timm's patch_size: of pictures as it is, of clips that of one frame.

    Raises:
        ValueError: several sizes, and the views are no clips.
    """
    if patch_size is None or isinstance(patch_size, int):
        return patch_size
    if view.axes != "CTHW" or not patch_size:
        raise ValueError(
            f"patch_size = {list(patch_size)}: views {view.group!r} of axes {view.axes} have "
            "square patches; write one number"
        )
    return patch_size[-1]


def check_whole(view: ViewSpec, patch: tuple[int, ...]) -> None:
    """Raise a ValueError unless the views are whole patches."""
    sides = tuple(view.size(axis) for axis in view.grid_axes)
    if any(side % step for side, step in zip(sides, patch, strict=True)):
        size = view.shape[1:] if view.axes == "CTHW" else grid_size(view)
        steps = patch[0] if len(set(patch)) == 1 else list(patch)
        raise ValueError(f"image size {size} is no multiple of patch_size {steps}; set one")
