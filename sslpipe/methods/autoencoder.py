"""Autoencoders, plain and denoising: rebuild the whole image from the encoder's maps.

Denoising: Vincent et al. 2008, "Extracting and composing robust features with denoising
autoencoders" (ICML); both are reviewed in arXiv:2003.05991, section 1. There is no reference code:
encoder, decoder and noise are our choice; the squared error of the FULL clean image is the paper's.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import Batch, BatchSpec
from ..encoders.protocols import MapEncoder
from ..errors import ContractError
from .method import Method, Output
from .parts.checks import check_axes, not_negative, positive, shares
from .parts.feature_maps import map_shape
from .parts.heads import at_least_fp32


def corrupt(images_BCHW: Tensor, *, noise: float, drop: float) -> Tensor:
    """Add normal noise of deviation `noise`, then set a share `drop` of the pixels to 0.

    Drawn from torch's generator, as dropout is.
    """
    # pixels and not single values: one channel would tell the others
    keep_B1HW = torch.rand_like(images_BCHW[:, :1]) >= drop
    return (images_BCHW + noise * torch.randn_like(images_BCHW)) * keep_B1HW


def autoencoder_loss(pred_BCHW: Tensor, images_BCHW: Tensor) -> Tensor:
    """Average the squared error over all pixels of the clean image; a scalar."""
    check_axes("autoencoder_loss", pred_BCHW=pred_BCHW, images_BCHW=images_BCHW)
    return F.mse_loss(at_least_fp32(pred_BCHW), at_least_fp32(images_BCHW))


class Autoencoder(Method):
    """Needs 1 'global' view; uses the first. Denoising where `noise` or `drop` is above 0.

    noise: standard deviation, in units of the normalised image. drop: share of pixels lost.
    bottleneck: channels that the decoder gets; too many, and copying is enough.

    Raises:
        ContractError: the encoder's maps do not tile the view evenly.
    """

    encoder: nn.Module

    def __init__(
        self,
        encoder: nn.Module,
        spec: BatchSpec,
        *,
        noise: float = 0.0,
        drop: float = 0.0,
        bottleneck: int = 64,
        hidden: int = 256,
    ) -> None:
        super().__init__()
        spec.require("autoencoder", views={"global": 1})
        not_negative(noise=noise)
        shares(drop=drop)
        if drop == 1:
            raise ValueError("drop = 1 leaves nothing to rebuild from; set it below 1")
        positive(bottleneck=bottleneck, hidden=hidden)
        view = spec.views["global"]
        dim, rows, columns = map_shape("autoencoder", encoder, view)
        height, width = view.size("H"), view.size("W")
        stride = height // rows
        if (rows * stride, columns * stride) != (height, width):
            raise ContractError(
                f"autoencoder: maps of {rows} x {columns} do not tile a view of {height} x "
                f"{width} px; make the view's size a multiple of the encoder's stride"
            )
        self.encoder = encoder
        self.noise = noise
        self.drop = drop
        self.decoder = nn.Sequential(
            nn.Conv2d(dim, bottleneck, kernel_size=1),
            nn.Conv2d(bottleneck, hidden, kernel_size=3, padding=1),
            nn.GELU(),
            nn.Conv2d(hidden, stride**2 * view.size("C"), kernel_size=3, padding=1),
            nn.PixelShuffle(stride),
        )

    def forward(self, batch: Batch) -> Output:
        """Corrupt, encode, decode, compare with what was before the corruption."""
        images_BCHW = batch.views["global"][0]
        encoder = cast(MapEncoder, self.encoder)
        noisy_BCHW = corrupt(images_BCHW, noise=self.noise, drop=self.drop)
        pred_BCHW = self.decoder(encoder.maps(noisy_BCHW))
        # 1 would be the error of guessing the mean image: a share of what there is to explain
        variance = images_BCHW.float().var(0, correction=0).mean()
        loss = autoencoder_loss(pred_BCHW, images_BCHW)
        return Output(loss, {"unexplained": loss.detach() / variance.clamp(min=1e-12)})
