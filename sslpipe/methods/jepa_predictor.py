"""I-JEPA's predictor: a narrow ViT that reads the context and writes at the target places.

facebookresearch/ijepa, src/models/vision_transformer.py (VisionTransformerPredictor).
M target blocks per image, R = M * B of them, S tokens of a context, T of a target here.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..encoders.patches import library, sincos
from .parts.heads import trunc_normal
from .parts.patches import check_blocks
from .parts.ragged import Padded, real_keys


class JEPAPredictor(nn.Module):
    """Mask tokens with the positions of a target block beside the context; fixed positions."""

    positions_ND: Tensor

    def __init__(
        self, encoder_dim: int, grid: tuple[int, ...], *, dim: int, heads: int, depth: int
    ) -> None:
        super().__init__()
        check_blocks("predictor", dim=dim, heads=heads, depth=depth)
        block = library("timm.models.vision_transformer").Block
        self.embed = nn.Linear(encoder_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(dim))
        self.register_buffer("positions_ND", sincos(dim, grid)[0, 1:], persistent=False)
        self.blocks = nn.ModuleList(block(dim, heads, qkv_bias=True) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.predict = nn.Linear(dim, encoder_dim)
        self.initialise()

    def initialise(self) -> None:
        """The official weights: trunc_normal(.02), residual branches scaled by their depth."""
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.apply(trunc_normal)
        with torch.no_grad():
            for number, block in enumerate(cast(Any, self.blocks), start=1):
                block.attn.proj.weight /= math.sqrt(2.0 * number)
                block.mlp.fc2.weight /= math.sqrt(2.0 * number)

    def forward(self, tokens_BSD: Tensor, context: Padded, targets: Padded) -> Tensor:
        """Context tokens -> (R, T, D); the blocks of an image do not see each other."""
        masks = len(targets.index_BS) // len(tokens_BSD)
        x_BSD = self.embed(tokens_BSD) + self.positions_ND[context.index_BS]
        queries_RTD = self.mask_token + self.positions_ND[targets.index_BS]
        x = torch.cat([x_BSD.repeat(masks, 1, 1), queries_RTD], dim=1)
        repeated = context._replace(real_BS=context.real_BS.repeat(masks, 1))
        keys = real_keys(repeated, targets)
        attended = None if keys is None else keys[:, None, None]
        for block in self.blocks:
            x = block(x, attn_mask=attended)
        return cast(Tensor, self.predict(self.norm(x[:, tokens_BSD.shape[1] :])))
