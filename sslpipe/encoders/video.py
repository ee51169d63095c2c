"""Encoders of clips (B, C, T, H, W): ViTs on tubelets of frames, and torchvision's 3-D ResNets.

A `vit` of views of axes CTHW is a `ClipViT`, in which all tubelets of a clip see each other
(VideoMAE, V-JEPA); `timesformer` divides space and time (timesformer.py).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..batch import ViewSpec
from .libraries import Blueprint, library
from .library_encoders import LibraryEncoder, ViT
from .protocols import Encoder
from .timesformer import timesformer

FRAMES = 2  # of a tubelet, where a backbone's name says its rows and columns alone
WIDTH = 64  # channels of the first stage of torchvision's 3-D ResNets


class Tubelets(nn.Module):
    """Embed blocks of frames, rows and columns, and leave them on their grid.

    Weights are those of a 3-D convolution, as in VideoMAE and V-JEPA.
    """

    def __init__(self, view: ViewSpec, patch: tuple[int, int, int], dim: int) -> None:
        super().__init__()
        self.patch_size = patch
        self.img_size = view.shape[1:]  # timm's name of what grid_size divides
        self.grid_size = tuple(n // p for n, p in zip(self.img_size, patch, strict=True))
        self.proj = nn.Conv3d(view.size("C"), dim, kernel_size=patch, stride=patch)

    def forward(self, clips_BCTHW: Tensor) -> Tensor:
        """Give an embedding of each tubelet, (B, t, h, w, D), t h w = grid_size."""
        given = tuple(clips_BCTHW.shape[2:])
        # an AssertionError, as timm's PatchEmbed raises
        assert given == self.img_size, f"clips of {given}, not of {self.img_size}"
        return cast(Tensor, self.proj(clips_BCTHW)).movedim(1, -1)


class ClipViT(ViT):
    """A timm VisionTransformer on tubelets, time outermost, behind a class token.

    VideoMAE and V-JEPA have no class token; with pool "mean" it is no part of the features.
    """

    def placed(self, x_BhwD: Tensor) -> Tensor:
        """Lay tubelets (B, t, h, w, D) in raster order behind the class token, with positions."""
        tokens_BND = x_BhwD.flatten(1, 3)
        # not len(), which an exported graph would keep as a number
        class_B1D = self.model.cls_token.expand(tokens_BND.shape[0], -1, -1)
        return torch.cat([class_B1D, tokens_BND], dim=1) + cast(Tensor, self.model.pos_embed)


def take_clips(model: Any, view: ViewSpec, patch_size: int | tuple[int, ...] | None) -> None:
    """Make timm's ViT, in place, one of clips: tubelets for patches, and their positions, learned.

    Raises:
        ValueError: tubelets of another number of axes than clips have.
    """
    if patch_size is None:
        patch_size = (FRAMES, *model.patch_embed.patch_size)
    patch = (patch_size,) * 3 if isinstance(patch_size, int) else patch_size
    if len(patch) != 3:
        raise ValueError(
            f"patch_size = {list(patch)}; clips have patches of three sizes: frames, rows, columns"
        )
    model.patch_embed = Tubelets(view, patch, model.embed_dim)
    tokens = (
        1 + model.patch_embed.grid_size[0] * torch.Size(model.patch_embed.grid_size[1:]).numel()
    )
    model.pos_embed = nn.Parameter(torch.empty(1, tokens, model.embed_dim))
    nn.init.trunc_normal_(model.pos_embed, std=0.02)  # as timm draws those of pictures


class ClipResNet(LibraryEncoder):
    """A torchvision VideoResNet; features are the means of its maps over time and space."""


def r3d_18(
    view: ViewSpec, *, width: int = WIDTH, blocks: tuple[int, int, int, int] = (2, 2, 2, 2)
) -> Encoder:
    """Build the ResNet of 3-D convolutions of basic blocks (Tran et al. 2018, arXiv:1711.11248).

    width: channels of the first stage, twice as many in each further one; `blocks` per stage. The
    defaults are torchvision's r3d_18.
    """
    return clip_resnet("r3d_18", "Conv3DSimple", "BasicBlock", view, width, blocks)


def r2plus1d_18(
    view: ViewSpec, *, width: int = WIDTH, blocks: tuple[int, int, int, int] = (2, 2, 2, 2)
) -> Encoder:
    """Build R(2+1)D: each 3-D convolution is one in space, then one in time (the same paper).

    As `r3d_18`; the defaults are torchvision's r2plus1d_18.
    """
    return clip_resnet("r2plus1d_18", "Conv2Plus1D", "BasicBlock", view, width, blocks)


def r3d_50(
    view: ViewSpec, *, width: int = WIDTH, blocks: tuple[int, int, int, int] = (3, 4, 6, 3)
) -> Encoder:
    """Build the same of bottlenecks, from torchvision's parts; the library has no such model.

    It stands for the R3D-50 of CVRL and the Slow R50 of rho-MoCo, which convolve over time in
    fewer layers.
    """
    return clip_resnet("r3d_50", "Conv3DSimple", "Bottleneck", view, width, blocks)


def clip_resnet(
    name: str, conv: str, block: str, view: ViewSpec, width: int, blocks: tuple[int, ...]
) -> Encoder:
    """Put a 3-D ResNet together.

    Raises:
        ValueError: views that are no clips of three channels, or an empty stage.
    """
    if view.axes != "CTHW" or view.size("C") != 3:
        raise ValueError(
            f"{name} takes clips of 3 channels; views {view.group!r} are {view.shown} of axes "
            f"{view.axes}; choose a backbone for them"
        )
    if width < 1 or min(blocks) < 1:
        raise ValueError(f"width = {width}, blocks = {list(blocks)}; set 1 or more")
    parts = library("torchvision.models.video.resnet")
    kind, maker = getattr(parts, block), getattr(parts, conv)
    stem = parts.R2Plus1dStem if conv == "Conv2Plus1D" else parts.BasicStem
    model = parts.VideoResNet(kind, [maker] * 4, list(blocks), stem)
    if width != WIDTH:
        narrow(model, kind, maker, width, blocks)
    dim = model.fc.in_features * width // WIDTH
    model.fc = nn.Identity()
    plain = width == WIDTH and name != "r3d_50" and tuple(blocks) == (2, 2, 2, 2)
    return ClipResNet(model, dim, Blueprint("torchvision", name, {}) if plain else None)


def narrow(model: Any, block: Any, maker: Any, width: int, blocks: tuple[int, ...]) -> None:
    """Give a VideoResNet stages of other widths, in place; weights are drawn as the library's."""
    first, *rest = [part for part in model.stem if isinstance(part, nn.Conv3d)]
    between = first.out_channels * width // WIDTH
    model.stem = nn.Sequential(*conv_norm(first, first.in_channels, between if rest else width))
    for last in rest:
        model.stem.extend(conv_norm(last, between, width))
    model.inplanes = width
    for stage, count in enumerate(blocks):
        layer = model._make_layer(block, maker, width << stage, count, stride=min(stage, 1) + 1)
        setattr(model, f"layer{stage + 1}", layer)
    for part in model.modules():
        if isinstance(part, nn.Conv3d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")


def conv_norm(like: nn.Conv3d, inputs: int, outputs: int) -> list[nn.Module]:
    """A convolution like another one, of other channels, with batch norm and ReLU."""
    conv = nn.Conv3d(inputs, outputs, like.kernel_size, like.stride, like.padding, bias=False)  # type: ignore[arg-type]
    return [conv, nn.BatchNorm3d(outputs), nn.ReLU(inplace=True)]


VIDEO_ENCODERS: Mapping[str, Callable[..., Encoder]] = MappingProxyType(
    {
        "r2plus1d_18": r2plus1d_18,
        "r3d_18": r3d_18,
        "r3d_50": r3d_50,
        "timesformer": timesformer,
    }
)
