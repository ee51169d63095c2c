"""The wrappers around the libraries' models that make encoders of them."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .libraries import Blueprint
from .patches import Resample, along_axes, chosen_tokens, on_grid, resampled
from .protocols import BlockTokens, Encoder


class LibraryEncoder(Encoder):
    """An encoder whose `model` is a library's, without its classifier."""

    model: Any

    def __init__(self, model: nn.Module, dim: int, blueprint: Blueprint | None = None) -> None:
        super().__init__()
        self.model = model
        self.dim = dim
        self.blueprint = blueprint  # None: no call of the library makes this model

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Give the pooled features, (B, D)."""
        return cast(Tensor, self.model(images_BCHW))


class ResNet(LibraryEncoder):
    """A torchvision ResNet; features are the means of its maps."""

    def maps(self, images_BCHW: Tensor) -> Tensor:
        """Give what is pooled to features: (B, D, h, w)."""
        model = self.model
        x = model.maxpool(model.relu(model.bn1(model.conv1(images_BCHW))))
        return cast(Tensor, model.layer4(model.layer3(model.layer2(model.layer1(x)))))


class TimmModel(LibraryEncoder):
    """Any model of timm, with its own pooling."""

    def maps(self, images_BCHW: Tensor) -> Tensor:
        """Give what is pooled to features; (B, D, h, w) in convolutional models."""
        return cast(Tensor, self.model.forward_features(images_BCHW))


class TimmViT(TimmModel):
    """A timm ViT of whatever kind as the library builds it: registers, no class token, rotations.

    Methods that hide patches need `ViT`; this one is for evaluation.
    """

    def last_blocks(self, images_BCHW: Tensor, count: int) -> BlockTokens:
        """Encode once and show the last `count` blocks; the model's `norm` is the final norm.

        Models that norm after pooling (timm's fc_norm) have none: their tokens are shown as they
        are.
        """
        model = self.model
        final_BTD, layers = model.forward_intermediates(
            images_BCHW, indices=min(count, len(model.blocks)), norm=True, output_fmt="NLC",
            return_prefix_tokens=True,
        )  # fmt: skip
        prefixed = model.num_prefix_tokens > 0
        classes = None
        if model.cls_token is not None and prefixed:
            classes = torch.stack([prefix_BPD[:, 0] for _, prefix_BPD in layers], dim=1)
        patches_BND = layers[-1][0] if prefixed else layers[-1]
        return BlockTokens(model.forward_head(final_BTD), classes, patches_BND)

    def maps(self, images_BCHW: Tensor) -> Tensor:
        """Lay the patches' tokens on their grid: (B, D, rows, columns)."""
        (map_BDhw,) = self.model.forward_intermediates(
            images_BCHW, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True
        )
        return cast(Tensor, map_BDhw)


class ViT(LibraryEncoder):
    """A timm VisionTransformer; features are pooled after the final norm."""

    def __init__(
        self, model: nn.Module, dim: int, blueprint: Blueprint | None = None, *,
        patch_size: int | tuple[int, ...], resample: Resample = "antialias",
    ) -> None:  # fmt: skip
        super().__init__(model, dim, blueprint)
        self.patch_size = patch_size
        self.resample = resample

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Give the pooled features, (B, D), of the same tokens as `tokens`."""
        return cast(Tensor, self.model.forward_head(self.tokens(images_BCHW)))

    def placed(self, x_BhwD: Tensor) -> Tensor:
        """Lay embedded patches in raster order behind the class token, with their positions."""
        model, new = self.model, (x_BhwD.shape[1], x_BhwD.shape[2])
        old = model.patch_embed.grid_size
        if self.resample == "antialias" or new == old:
            return cast(Tensor, model._pos_embed(x_BhwD))
        offset = self.resample == "bicubic_offset"
        places_1ND = resampled(model.pos_embed[:, 1:], old, new, offset=offset)
        class_11D = model.cls_token + model.pos_embed[:, :1]
        patches_BND = x_BhwD.flatten(1, 2) + places_1ND
        return torch.cat([class_11D.expand(len(x_BhwD), -1, -1), patches_BND], dim=1)

    def tokens(
        self,
        images_BCHW: Tensor,
        visible_BS: Tensor | None = None,
        *,
        real_BS: Tensor | None = None,
        hidden_BN: Tensor | None = None,
        mask_token_D: Tensor | None = None,
    ) -> Tensor:
        """Give class token and patches after the final norm, (B, 1 + N, D) or (B, 1 + S, D).

        `visible_BS`, int64 patch numbers: the transformer sees these patches only, in this order,
        each with the position it has in the image. Indices, not a mask: the shape is known. With
        M * B rows, row m * B + b is choice m of image b, which is embedded once.
        `real_BS`, bool: False is padding of `visible_BS`, which no token attends to.
        `hidden_BN`: `mask_token_D` stands for these patches, at their positions (SimMIM, iBOT).
        """
        x = self.model.patch_embed(images_BCHW)
        if hidden_BN is not None and mask_token_D is not None:
            # dynamic_img_size keeps the grid: (B, rows, columns, D)
            hidden = hidden_BN.view(*x.shape[:-1], 1)
            x = torch.where(hidden, mask_token_D.to(x.dtype), x)
        x = self.placed(x)
        if visible_BS is not None:
            x = chosen_tokens(x, visible_BS)
        attended = None if real_BS is None else F.pad(real_BS, (1, 0), value=True)[:, None, None]
        x = self.model.norm_pre(x)
        for block in self.model.blocks:
            x = block(x, attn_mask=attended)
        return cast(Tensor, self.model.norm(x))

    def last_blocks(self, images_BCHW: Tensor, count: int) -> BlockTokens:
        """Encode once and show the last `count` blocks."""
        x = self.model.norm_pre(self.placed(self.model.patch_embed(images_BCHW)))
        layers: list[Tensor] = []
        for block in self.model.blocks:
            x = block(x)
            layers = [*layers, x][-count:]
        *before, last_BTD = (self.model.norm(layer) for layer in layers)
        classes_BLD = torch.stack([tokens[:, 0] for tokens in (*before, last_BTD)], dim=1)
        features_BD = self.model.forward_head(last_BTD)
        return BlockTokens(features_BD, classes_BLD, last_BTD[:, 1:])

    def feed_forwards(self, images_BCHW: Tensor) -> Tensor:
        """Give what the MLP of each of the L blocks adds to its tokens: (L, B, 1 + N, D)."""
        outputs: list[Tensor] = []
        hooks = [
            block.mlp.register_forward_hook(lambda _, __, output: outputs.append(output))
            for block in self.model.blocks
        ]
        try:
            self.tokens(images_BCHW)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.stack(outputs)

    def maps(self, images_BCHW: Tensor) -> Tensor:
        """Lay the patches' tokens on their grid: (B, D, rows, columns)."""
        extents = images_BCHW.shape[2:]
        patch = along_axes(self.patch_size, len(extents))
        grid = tuple(extent // side for extent, side in zip(extents, patch, strict=True))
        return on_grid(self.tokens(images_BCHW)[:, 1:], grid)
