"""data2vec 2.0's decoder: noise at the hidden places, then convolutions over the grid of patches.

fairseq, examples/data2vec/models/modalities/modules.py (Decoder2d) and base.py (decoder_input).
R masked images, S visible patches here.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoders.patches import on_grid
from .parts.limits import positive
from .parts.patches import take


class ConvDecoder(nn.Module):
    """`depth` grouped 3 x 3 convolutions with layer norm, GELU and residuals; a linear layer."""

    def __init__(
        self, encoder_dim: int, grid: tuple[int, ...], *, dim: int, depth: int, groups: int,
        noise: float,
    ) -> None:  # fmt: skip
        super().__init__()
        positive(decoder_dim=dim, decoder_depth=depth, decoder_groups=groups)
        if dim % groups or encoder_dim % groups:
            raise ValueError(
                f"decoder_groups = {groups} divides not both decoder_dim = {dim} and the encoder's "
                f"{encoder_dim}; set a divisor"
            )
        self.grid = grid
        self.noise = noise
        widths = [encoder_dim, *[dim] * depth]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(widths[i], dim, kernel_size=3, padding=1, groups=groups) for i in range(depth)
        )
        self.predict = nn.Linear(dim, encoder_dim)

    def forward(self, tokens_RSD: Tensor, order_RN: Tensor) -> Tensor:
        """(R, 1 + S, D) tokens and `visible_first` of the mask -> (R, N, D)."""
        x = on_grid(self.whole(tokens_RSD[:, 1:], order_RN), self.grid)
        for convolution in self.convolutions:
            y = F.gelu(channel_norm(convolution(x)))
            x = x + y if x.shape == y.shape else y  # no residual where the width changes
        return cast(Tensor, self.predict(x.flatten(2).mT))

    def whole(self, visible_RSD: Tensor, order_RN: Tensor) -> Tensor:
        """All patches in raster order, normal noise where they are hidden."""
        missing = order_RN.shape[1] - visible_RSD.shape[1]
        noise = torch.randn_like(visible_RSD[:, :1].expand(-1, missing, -1)) * self.noise
        return take(torch.cat([visible_RSD, noise], dim=1), order_RN.argsort(dim=1))


def channel_norm(x_BCHW: Tensor) -> Tensor:
    """Layer norm over the channels of each place, without weights."""
    return F.layer_norm(x_BCHW.movedim(1, 3), x_BCHW.shape[1:2]).movedim(3, 1)
