"""What methods may ask of an encoder beside features; positions; the libraries of encoders.

D features, N patches, S visible patches.
"""

import importlib
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ExtraError


@runtime_checkable
class PatchEncoder(Protocol):
    """An encoder that shows its patches; image.ViT is one."""

    patch_size: int

    def tokens(
        self,
        images_BCHW: Tensor,
        visible_BS: Tensor | None = None,
        *,
        real_BS: Tensor | None = None,
        hidden_BN: Tensor | None = None,
        mask_token_D: Tensor | None = None,
    ) -> Tensor:
        """Class token and patches after the final norm, (B, 1 + N, D) or (B, 1 + S, D)."""


def sincos(dim: int, grid: tuple[int, ...]) -> Tensor:
    """Fixed 2-D position embedding with a zero row for the class token: (1, 1 + N, dim) float32.

    facebookresearch/mae, util/pos_embed.py: the first half of the channels encodes the COLUMN
    ("here w goes first"), the second the row; each half is sines, then cosines.

    Raises:
        ValueError: `dim` is no multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"width {dim} of a sin-cos embedding must be a multiple of 4; change it")
    rows, columns = (torch.arange(n, dtype=torch.float64) for n in grid)
    row_N, column_N = (axis.flatten() for axis in torch.meshgrid(rows, columns, indexing="ij"))
    omega = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angles = [position[:, None] * omega for position in (column_N, row_N)]
    patches_ND = torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)
    return F.pad(patches_ND, (0, 0, 1, 0)).float()[None]


def on_grid(patches_BND: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Patches as a map: (B, D, rows, columns)."""
    return patches_BND.mT.reshape(len(patches_BND), -1, *grid)


def library(name: str) -> Any:
    """Import timm or torchvision when it is needed: losses and batches work without them.

    Raises:
        ExtraError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ExtraError(
            f"{name} is not installed ({error}); pip install 'sslpipe[train]'"
        ) from error
