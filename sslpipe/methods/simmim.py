"""SimMIM: mask tokens stand for hidden patches; one linear layer guesses their pixels.

Xie et al. 2021, "SimMIM: a simple framework for masked image modeling", arXiv:2111.09886;
microsoft/SimMIM, models/simmim.py. Encoders are ViTs; the paper's Swin has no tokens() here.
"""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from ..batch import Batch, BatchSpec
from ..encoders.libraries import undecayed_by_name
from ..encoders.monitors import spread_over_images
from ..encoders.patches import on_grid
from ..encoders.protocols import PatchEncoder
from .method import Method, Output
from .parts.checks import check_axes
from .parts.collapse import MASKED_CAUSES, predictions_alike
from .parts.heads import at_least_fp32, feature_dim
from .parts.patches import hidden_patches, patch_mask


def simmim_loss(
    pred_BCHW: Tensor, images_BCHW: Tensor, hidden_BN: Tensor, *, patch_size: int
) -> Tensor:
    """Eq. 1: mean absolute error of the hidden pixels, all channels alike.

    The target is the normalised image itself, not scaled patch by patch as in MAE.
    """
    check_axes("simmim_loss", pred_BCHW=pred_BCHW, images_BCHW=images_BCHW, hidden_BN=hidden_BN)
    size, channels, height, width = images_BCHW.shape
    error_BHW = (at_least_fp32(pred_BCHW) - at_least_fp32(images_BCHW)).abs().sum(1)
    pixels_BHW = hidden_BN.view(size, height // patch_size, width // patch_size).to(error_BHW)
    pixels_BHW = pixels_BHW.repeat_interleave(patch_size, 1).repeat_interleave(patch_size, 2)
    # officially + 1e-5 below, for masks that hide nothing; it would make the loss that of a rank
    loss: Tensor = (error_BHW * pixels_BHW).sum() / pixels_BHW.sum() / channels
    return loss


class SimMIM(Method):
    """Needs 1 'global' view and masks 'units'; uses the first of each."""

    encoder: nn.Module
    collapse_signs = (predictions_alike,)
    collapse_causes = MASKED_CAUSES

    def __init__(self, encoder: nn.Module, spec: BatchSpec) -> None:
        super().__init__()
        mask = patch_mask("simmim", encoder, spec, "units")
        hidden_patches("simmim", mask, "units")
        dim = feature_dim(encoder, "simmim")
        self.encoder = encoder
        self.patch_size = mask.patch[0]
        self.grid = mask.grid
        # 3-D, as officially, where it is therefore decayed
        self.mask_token_11D = nn.Parameter(torch.empty(1, 1, dim))
        nn.init.trunc_normal_(self.mask_token_11D, std=0.02, a=-0.02, b=0.02)
        values = mask.patch[0] ** 2 * spec.views["global"].size("C")
        self.decoder = nn.Sequential(
            nn.Conv2d(dim, values, kernel_size=1), nn.PixelShuffle(mask.patch[0])
        )

    def forward(self, batch: Batch) -> Output:
        """Encode with mask tokens at the hidden places, decode every patch, compare hidden ones."""
        images_BCHW, hidden_BN = batch.views["global"][0], batch.masks["units"][0]
        encoder = cast(PatchEncoder, self.encoder)
        mask_token_D = self.mask_token_11D[0, 0]
        tokens_BTD = encoder.tokens(images_BCHW, hidden_BN=hidden_BN, mask_token_D=mask_token_D)
        pred_BCHW = self.decoder(on_grid(tokens_BTD[:, 1:], self.grid))
        loss = simmim_loss(pred_BCHW, images_BCHW, hidden_BN, patch_size=self.patch_size)
        # 0 = every image gets the same picture: the encoder ignores what is visible
        return Output(loss, {"prediction_std": spread_over_images(pred_BCHW.detach())})

    def undecayed_parameters(self) -> Iterable[nn.Parameter]:
        """Spare the class token and positions of the encoder (optimizer.py)."""
        return undecayed_by_name(self.encoder)
