"""Parts of methods that hide patches from a ViT: checks, choices of patches, MAE's decoder.

Rows may choose different numbers of patches; they are then padded to the longest one. The counts
are known on the host (Batch.hidden), so no shape waits for the device.
S patches that a row chooses (of the longest row), P values of a patch here.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ...batch import BatchSpec, MaskSpec
from ...encoders.libraries import library
from ...encoders.patches import along_axes, sincos, take, visible_first
from ...encoders.protocols import Encoder, PatchEncoder
from ...errors import ContractError
from .checks import positive
from .collectives import all_mean


def patch_mask(
    method: str,
    encoder: nn.Module,
    spec: BatchSpec,
    name: str,
    view: str = "global",
    *,
    axes: tuple[int, ...] = (2,),
) -> MaskSpec:
    """Find the mask called `name`, over the encoder's patches of the views of group `view`.

    axes: on grids of how many the method works; clips have three.

    Raises:
        ContractError: views, mask or encoder do not fit each other.
    """
    spec.require(method, views={view: 1}, masks=(name,))
    mask = spec.masks[name]
    if not isinstance(encoder, PatchEncoder):
        raise ContractError(
            f"{method} needs an encoder with tokens(images, visible); {type(encoder).__name__} has "
            "none. Set train.backbone to a ViT, such as vit_base"
        )
    if mask.view != view:
        raise ContractError(
            f"{method} masks {view!r}; set masks.{name}.view to it, not {mask.view!r}"
        )
    if len(mask.grid) not in axes:
        raise ContractError(
            f"{method} masks grids of {' or '.join(map(str, axes))} axes; masks.{name} lies over "
            f"the axes {mask.axes} of views.{view}. Choose views of another kind, or another method"
        )
    if mask.patch != along_axes(encoder.patch_size, len(mask.grid)):
        size = mask.patch[0] if len(set(mask.patch)) == 1 else list(mask.patch)
        theirs = encoder.patch_size
        raise ContractError(
            f"{method} needs a mask of the encoder's patches: masks.{name}.patch_size = "
            f"{size}, but the encoder's is {theirs if isinstance(theirs, int) else list(theirs)}. "
            "Set one to the other"
        )
    return mask


def whole_patches(method: str, encoder: nn.Module, spec: BatchSpec, groups: Iterable[str]) -> None:
    """Check that the views of `groups` are a whole number of the encoder's patches, if it has any.

    Raises:
        ContractError: a group's views are not.
    """
    patch = encoder.patch_size if isinstance(encoder, Encoder | PatchEncoder) else 1
    for group in groups:
        sides = [spec.views[group].size(axis) for axis in spec.views[group].grid_axes]
        steps = along_axes(patch, len(sides))
        if any(side % step for side, step in zip(sides, steps, strict=True)):
            raise ContractError(
                f"{method}: views {group!r} of {' x '.join(map(str, sides))} px are no whole "
                f"patches of {' x '.join(map(str, dict.fromkeys(steps)))} px; set the crop of "
                f"views.{group}, or patch_size of train.backbone"
            )


def hidden_patches(method: str, mask: MaskSpec, name: str) -> int:
    """Tell how many patches every row of the mask called `name` hides.

    Raises:
        ContractError: rows differ.
    """
    if mask.hidden is None:
        raise ContractError(
            f"{method} needs masks.{name} to hide the same number of patches in every row; "
            "set its sampler to an exact one, such as random"
        )
    return mask.hidden


class Padded(NamedTuple):
    """The chosen patches of each row in raster order, then padding: patches not chosen."""

    index_BS: Tensor  # int64 patch numbers
    real_BS: Tensor  # bool; False: padding
    even: bool  # no row has padding, known on the host


def padded(chosen_BN: Tensor, counts: npt.NDArray[np.int64]) -> Padded:
    """Number what each row chooses; `counts` are those of all rows, in any shape."""
    most = int(counts.max())
    index_BS = visible_first(~chosen_BN)[:, :most]
    return Padded(index_BS, chosen_BN.gather(1, index_BS), bool(counts.min() == most))


def real_keys(*parts: Padded) -> Tensor | None:
    """Tell what may be attended to where `parts` stand side by side: (B, S) bool.

    None where nothing is padding: attention without a mask has the faster kernels.
    """
    if all(part.even for part in parts):
        return None
    return torch.cat([part.real_BS for part in parts], dim=1)


def mean_of_real(values_BS: Tensor, real_BS: Tensor) -> Tensor:
    """Average over the real entries; the mean over ranks is that over the joined batch.

    Ranks differ in how many entries are real, hence the division by their mean number.
    """
    real = real_BS.to(values_BS.dtype)
    return (values_BS * real).sum() / all_mean(real.sum())


def check_blocks(part: str, *, dim: int, heads: int, depth: int) -> None:
    """Raise a ValueError unless `part`, a small ViT, has blocks whose heads divide its width."""
    positive(**{f"{part}_dim": dim, f"{part}_heads": heads, f"{part}_depth": depth})
    if dim % heads:
        raise ValueError(
            f"{part}_dim = {dim} is no multiple of {part}_heads = {heads}; set one of them"
        )


class MaskedDecoder(nn.Module):
    """MAE's decoder puts mask tokens at the hidden places; a light ViT predicts all patches.

    window: its blocks attend within windows of so many patches each way, as AudioMAE's do; None: to
    all patches.
    """

    positions: Tensor

    def __init__(
        self, encoder_dim: int, patch_values: int, grid: tuple[int, ...], *, dim: int, heads: int,
        depth: int, window: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        check_blocks("decoder", dim=dim, heads=heads, depth=depth)
        self.grid = None if window is None else grid
        self.embed = nn.Linear(encoder_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("positions", sincos(dim, grid), persistent=False)
        if window is not None:
            self.blocks = windowed_blocks(dim, heads, depth, grid, window)
        else:
            block = library("timm.models.vision_transformer").Block
            self.blocks = nn.Sequential(*(block(dim, heads, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.predict = nn.Linear(dim, patch_values)
        self.apply(xavier)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, tokens_BSD: Tensor, order_BN: Tensor) -> Tensor:
        """Turn (B, 1 + S, D) tokens and `visible_first` of the mask into (B, N, P) predictions."""
        x = self.embed(tokens_BSD)
        missing = order_BN.shape[1] + 1 - x.shape[1]
        patches = torch.cat([x[:, 1:], self.mask_token.expand(len(x), missing, -1)], dim=1)
        patches = take(patches, order_BN.argsort(dim=1))  # back to raster order
        x = torch.cat([x[:, :1], patches], dim=1) + self.positions
        pred_BNP: Tensor = self.predict(self.norm(self.attended(x)))
        return pred_BNP

    def asked(self, tokens_BSD: Tensor, visible_BS: Tensor, asked_BQ: Tensor) -> Tensor:
        """Predict the patches `asked_BQ` alone, (B, Q, P); the decoder sees no other mask tokens.

        `visible_BS`: which patches `tokens_BSD` are, behind the class token. A visible patch that
        is asked for has a mask token beside its own, as in VideoMAE v2.
        """
        x = self.embed(tokens_BSD)
        places_BND = self.positions[:, 1:].expand(len(x), -1, -1)
        class_B1D = x[:, :1] + self.positions[:, :1]
        seen_BSD = x[:, 1:] + take(places_BND, visible_BS)
        queries_BQD = self.mask_token + take(places_BND, asked_BQ)
        x = self.blocks(torch.cat([class_B1D, seen_BSD, queries_BQD], dim=1))
        pred_BQP: Tensor = self.predict(self.norm(x[:, -asked_BQ.shape[1] :]))
        return pred_BQP

    def attended(self, x_BTD: Tensor) -> Tensor:
        """Give the patches behind all blocks, (B, N, D); no window holds a class token."""
        if self.grid is None:
            every_BTD: Tensor = self.blocks(x_BTD)
            return every_BTD[:, 1:]
        placed_BhwD = x_BTD[:, 1:].reshape(len(x_BTD), *self.grid, -1)
        patches_BND: Tensor = self.blocks(placed_BhwD).flatten(1, 2)
        return patches_BND


def windowed_blocks(
    dim: int, heads: int, depth: int, grid: tuple[int, ...], window: int
) -> nn.Sequential:
    """Make timm's Swin blocks over (B, rows, columns, D), every other one shifted.

    facebookresearch/AudioMAE, models_mae.py: by half a window along time, our columns, alone.

    Raises:
        ValueError: the patches lie on no grid of two axes.
    """
    if len(grid) != 2 or window < 1:
        raise ValueError(
            f"decoder_window = {window} is for a grid of two axes, and 1 or more; here are "
            f"{len(grid)}: leave it out, or set it"
        )
    block = library("timm.models.swin_transformer").SwinTransformerBlock
    shifts = [(0, window // 2 * (i % 2)) for i in range(depth)]
    made = (block(dim, grid, heads, window_size=window, shift_size=shift) for shift in shifts)
    return nn.Sequential(*made)


def xavier(module: nn.Module) -> None:
    """Draw the weights of a linear layer as MAE does (for `module.apply`)."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
