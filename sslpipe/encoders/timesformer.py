"""TimeSformer: a ViT whose blocks attend along time, then within each frame.

Bertasius et al. 2021, "Is space-time attention all you need for video understanding?",
arXiv:2102.05095; facebookresearch/TimeSformer, models/vit.py, divided_space_time. S patches of a
frame here. The parts that a ViT of images has keep timm's names, so that its weights load
(inflation.py); the official names of the others are kept, too.
"""

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..batch import ViewSpec
from .libraries import timm_create
from .library_encoders import LibraryEncoder
from .protocols import Encoder


class DividedBlock(nn.Module):
    """A block of timm's ViT with attention along time before its own, which is in space.

    The layer behind the attention in time starts at zero, so that the first step is the image
    model's on each frame. Both attentions have the same rate of drop path.
    """

    def __init__(self, block: Any, dim: int) -> None:
        super().__init__()
        self.norm1, self.attn, self.drop_path1 = block.norm1, block.attn, block.drop_path1
        self.norm2, self.mlp, self.drop_path2 = block.norm2, block.mlp, block.drop_path2
        self.temporal_norm1 = copy.deepcopy(block.norm1)
        self.temporal_attn = copy.deepcopy(block.attn)
        for part in self.temporal_attn.modules():
            if isinstance(part, nn.Linear):  # weights of its own, drawn as timm draws all
                nn.init.trunc_normal_(part.weight, std=0.02)
        self.temporal_fc = nn.Linear(dim, dim)
        nn.init.zeros_(self.temporal_fc.weight)
        nn.init.zeros_(self.temporal_fc.bias)

    def forward(self, class_B1D: Tensor, patches_BTSD: Tensor) -> tuple[Tensor, Tensor]:
        """Give class token and patches after one block.

        The class token takes no part in time; in space it stands in every frame, and what it
        gathers there is averaged over frames.
        """
        size, frames, _, dim = patches_BTSD.shape
        along_XTD = patches_BTSD.transpose(1, 2).flatten(0, 1)
        moved_XTD = self.drop_path1(self.temporal_attn(self.temporal_norm1(along_XTD)))
        moved_BSTD = self.temporal_fc(moved_XTD).view(size, -1, frames, dim)
        patches_BTSD = patches_BTSD + moved_BSTD.transpose(1, 2)
        classes_BT1D = class_B1D[:, None].expand(-1, frames, -1, -1)
        within = torch.cat([classes_BT1D, patches_BTSD], dim=2).flatten(0, 1)
        seen = self.drop_path1(self.attn(self.norm1(within))).view(size, frames, -1, dim)
        class_B1D = class_B1D + seen[:, :, :1].mean(1)
        patches_BTSD = patches_BTSD + seen[:, :, 1:]
        x = torch.cat([class_B1D, patches_BTSD.flatten(1, 2)], dim=1)
        x = x + self.drop_path2(self.mlp(self.norm2(x)))
        return x[:, :1], x[:, 1:].view_as(patches_BTSD)


class TimeSformer(LibraryEncoder):
    """A timm ViT of divided blocks; features are its class token. It hides no patches."""

    def __init__(self, model: Any, view: ViewSpec) -> None:
        super().__init__(model, model.embed_dim)
        self.patch_size = (1, *model.patch_embed.patch_size)
        model.blocks = nn.ModuleList(DividedBlock(b, self.dim) for b in model.blocks)
        model.time_embed = nn.Parameter(torch.zeros(1, view.size("T"), self.dim))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Give features of clips (B, C, T, H, W): (B, D)."""
        model, (size, _, frames) = self.model, images_BCHW.shape[:3]
        x_XSD = model.patch_embed(images_BCHW.transpose(1, 2).flatten(0, 1))
        x_XSD = x_XSD + model.pos_embed[:, 1:]
        patches_BTSD = x_XSD.view(size, frames, *x_XSD.shape[1:]) + model.time_embed[:, :, None]
        class_B1D = (model.cls_token + model.pos_embed[:, :1]).expand(size, -1, -1)
        for block in model.blocks:
            class_B1D, patches_BTSD = block(class_B1D, patches_BTSD)
        features_BD: Tensor = model.norm(class_B1D[:, 0])
        return features_BD


def timesformer(
    view: ViewSpec,
    *,
    size: Literal["tiny", "small", "base", "large"] = "base",
    patch_size: int = 16,
    drop_path_rate: float = 0.1,
    embed_dim: int | None = None,
    depth: int | None = None,
    num_heads: int | None = None,
) -> Encoder:
    """Build TimeSformer on the ViT of a size; what is None is as that size says.

    Raises:
        ValueError: sizes do not fit each other, or the views are no clips of whole patches.
    """
    if view.axes != "CTHW" or view.size("H") % patch_size or view.size("W") % patch_size:
        raise ValueError(
            f"timesformer takes clips of whole patches of {patch_size} px; views {view.group!r} "
            f"are {view.shown} of axes {view.axes}; set patch_size, or the crop"
        )
    settings = {
        "img_size": (view.size("H"), view.size("W")), "in_chans": view.size("C"),
        "patch_size": patch_size, "drop_path_rate": drop_path_rate, "embed_dim": embed_dim,
        "depth": depth, "num_heads": num_heads,
    }  # fmt: skip
    return TimeSformer(timm_create(f"vit_{size}_patch16_224", **settings), view)
