"""MAE: encode the visible quarter of the patches, rebuild the pixels of the hidden rest.

He et al. 2021, "Masked autoencoders are scalable vision learners", arXiv:2111.06377;
facebookresearch/mae, models_mae.py. S visible patches, P = p * p * C values of a patch here.
The official encoder has fixed sin-cos positions: set `pos_embed: sincos` on the backbone. Its
weights start xavier-uniform, timm's from a truncated normal; the encoder comes as it was built.
"""

from typing import cast

import torch
from torch import Tensor, nn

from ..batch import Batch, BatchSpec
from ..encoders.monitors import spread_over_images
from ..encoders.patches import visible_first
from ..encoders.protocols import PatchEncoder
from .method import Method, Output
from .parts.checks import check_axes
from .parts.collapse import MASKED_CAUSES, predictions_alike
from .parts.heads import at_least_fp32, feature_dim
from .parts.patches import MaskedDecoder, hidden_patches, patch_mask


def patchify(images_BCHW: Tensor, patch: int) -> Tensor:
    """Cut (B, C, H, W) into (B, N, P), row-major; values of a patch are (row, column, channel)."""
    size, channels, height, width = images_BCHW.shape
    split = images_BCHW.reshape(size, channels, height // patch, patch, width // patch, patch)
    return split.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches_BNP: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """Undo `patchify`; `grid` is (rows, columns) of patches."""
    split = patches_BNP.reshape(len(patches_BNP), *grid, patch, patch, -1)
    return split.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def mae_loss(
    pred_BNP: Tensor,
    images_BCHW: Tensor,
    hidden_BN: Tensor,
    *,
    patch_size: int,
    normalise: bool = True,
) -> Tensor:
    """Mean squared error of the hidden patches only (section 3, "Reconstruction target").

    `normalise` scales each target patch by its own mean and (unbiased) variance, all channels
    together; predicting the mean everywhere then costs just below 1.
    """
    check_axes("mae_loss", pred_BNP=pred_BNP, images_BCHW=images_BCHW, hidden_BN=hidden_BN)
    target_BNP = patchify(at_least_fp32(images_BCHW), patch_size)
    check_axes("mae_loss", target_BNP=target_BNP, pred_BNP=pred_BNP)
    if normalise:
        var_BN1, mean_BN1 = torch.var_mean(target_BNP, dim=-1, keepdim=True)
        target_BNP = (target_BNP - mean_BN1) / (var_BN1 + 1e-6).sqrt()
    error_BN = (at_least_fp32(pred_BNP) - target_BNP).square().mean(-1)
    return (error_BN * hidden_BN).sum() / hidden_BN.sum()


class MAE(Method):
    """Needs 1 'global' view and masks 'random'; uses the first of each.

    Of spectrograms it is AudioMAE (Huang et al. 2022, arXiv:2207.06405), whose decoder attends
    within windows: decoder_window 4, depth 16. Patches are ours, frequency outermost.
    """

    encoder: nn.Module
    collapse_signs = (predictions_alike,)
    collapse_causes = MASKED_CAUSES

    def __init__(
        self,
        encoder: nn.Module,
        spec: BatchSpec,
        *,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        decoder_window: int | None = None,
        norm_pix: bool = True,
    ) -> None:
        super().__init__()
        mask = patch_mask("mae", encoder, spec, "random")
        self.encoder = encoder
        self.norm_pix = norm_pix
        self.patch_size = mask.patch[0]
        self.num_visible = mask.patches - hidden_patches("mae", mask, "random")
        self.decoder = MaskedDecoder(
            feature_dim(encoder, "mae"), mask.patch[0]**2 * spec.views["global"].size("C"),
            mask.grid, dim=decoder_dim, heads=decoder_heads, depth=decoder_depth,
            window=decoder_window,
        )  # fmt: skip

    def forward(self, batch: Batch) -> Output:
        """Encode what is visible, decode everything, compare what was hidden."""
        images_BCHW, hidden_BN = batch.views["global"][0], batch.masks["random"][0]
        order_BN = visible_first(hidden_BN)
        encoder = cast(PatchEncoder, self.encoder)
        tokens_BSD = encoder.tokens(images_BCHW, order_BN[:, : self.num_visible])
        pred_BNP = self.decoder(tokens_BSD, order_BN)
        loss = mae_loss(
            pred_BNP, images_BCHW, hidden_BN, patch_size=self.patch_size, normalise=self.norm_pix
        )
        # 0 = every image gets the same picture: the decoder ignores the encoder
        return Output(loss, {"prediction_std": spread_over_images(pred_BNP.detach())})
