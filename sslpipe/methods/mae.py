"""MAE and VideoMAE: encode a few of the patches, rebuild the pixels of the hidden rest.

He et al. 2021, "Masked autoencoders are scalable vision learners", arXiv:2111.06377;
facebookresearch/mae, models_mae.py. S visible patches, P values of a patch (p * p * C of an
image's) here. On clips it is VideoMAE (Tong et al. 2022, arXiv:2203.12602; MCG-NJU/VideoMAE), and
with a mask for the decoder, too, VideoMAE v2 (Wang et al. 2023, arXiv:2303.16727).
The official encoder has fixed sin-cos positions: set `pos_embed: sincos` on the backbone. Its
weights start xavier-uniform, timm's from a truncated normal; the encoder comes as it was built.
"""

import math
from typing import Literal, cast

import torch
from torch import Tensor, nn

from ..batch import Batch, BatchSpec
from ..encoders.monitors import spread_over_images
from ..encoders.patches import along_axes, take, visible_first
from ..encoders.protocols import PatchEncoder
from .method import Method, Output
from .parts.checks import check_axes
from .parts.collapse import MASKED_CAUSES, predictions_alike
from .parts.heads import at_least_fp32, feature_dim
from .parts.patches import MaskedDecoder, hidden_patches, patch_mask

Scale = bool | Literal["channel"]  # by what targets are normalised: a whole patch, or its channels


def patchify(images_BCHW: Tensor, patch: int | tuple[int, ...]) -> Tensor:
    """Cut (B, C, H, W) or (B, C, T, H, W) into (B, N, P), row-major, time outermost.

    Values of a patch are (row, column, channel), of a clip (time, row, column, channel).
    """
    size, channels, *extents = images_BCHW.shape
    sides = along_axes(patch, len(extents))
    steps = [n for e, side in zip(extents, sides, strict=True) for n in (e // side, side)]
    split, axes = images_BCHW.reshape(size, channels, *steps), range(2, 2 + len(steps))
    inner = split.permute(0, *axes[::2], *axes[1::2], 1).flatten(len(sides) + 1)
    return inner.flatten(1, len(sides))


def unpatchify(patches_BNP: Tensor, patch: int | tuple[int, ...], grid: tuple[int, ...]) -> Tensor:
    """Undo `patchify`; `grid` is (rows, columns) of patches, or (times, rows, columns)."""
    axes, sides = len(grid), along_axes(patch, len(grid))
    split = patches_BNP.reshape(len(patches_BNP), *grid, *sides, -1)
    pairs = [axis for n in range(axes) for axis in (1 + n, 1 + axes + n)]
    whole = split.permute(0, 1 + 2 * axes, *pairs)
    extents = [rows * side for rows, side in zip(grid, sides, strict=True)]
    return whole.reshape(*whole.shape[:2], *extents)


def mae_loss(
    pred_BNP: Tensor,
    images_BCHW: Tensor,
    hidden_BN: Tensor,
    *,
    patch_size: int | tuple[int, ...],
    normalise: Scale = True,
    asked_BQ: Tensor | None = None,
) -> Tensor:
    """Mean squared error of the hidden patches only (section 3, "Reconstruction target").

    `normalise` scales each target patch by its own mean and (unbiased) variance, all channels
    together; predicting the mean everywhere then costs just below 1. "channel": each channel by its
    own, as VideoMAE does. Images may be clips (B, C, T, H, W).
    `asked_BQ`: predictions are (B, Q, P), of these patch numbers, and hidden ones among them count.
    """
    view = "images_BCTHW" if images_BCHW.ndim == 5 else "images_BCHW"
    check_axes("mae_loss", **{view: images_BCHW}, hidden_BN=hidden_BN)
    target_BNP = patchify(at_least_fp32(images_BCHW), patch_size)
    if asked_BQ is not None:
        target_BNP, hidden_BN = take(target_BNP, asked_BQ), hidden_BN.gather(1, asked_BQ)
    check_axes("mae_loss", target_BNP=target_BNP, pred_BNP=pred_BNP, hidden_BN=hidden_BN)
    if normalise == "channel":
        target_BNP = channels_normalised(target_BNP, images_BCHW.shape[1])
    elif normalise:
        var_BN1, mean_BN1 = torch.var_mean(target_BNP, dim=-1, keepdim=True)
        target_BNP = (target_BNP - mean_BN1) / (var_BN1 + 1e-6).sqrt()
    error_BN = (at_least_fp32(pred_BNP) - target_BNP).square().mean(-1)
    return (error_BN * hidden_BN).sum() / hidden_BN.sum()


def channels_normalised(target_BNP: Tensor, channels: int) -> Tensor:
    """Scale each channel of each patch by its own mean and (unbiased) deviation.

    MCG-NJU/VideoMAE, engine_for_pretraining.py: 1e-6 is added outside the root. It does so to
    pixels in [0, 1]; where ours are normalised by about .225, 1e-6 weighs that much less.
    """
    split_BNpC = target_BNP.reshape(*target_BNP.shape[:2], -1, channels)
    std_BN1C, mean_BN1C = torch.std_mean(split_BNpC, dim=-2, keepdim=True)
    scaled_BNpC: Tensor = (split_BNpC - mean_BN1C) / (std_BN1C + 1e-6)
    return scaled_BNpC.flatten(-2)


class MAE(Method):
    """Needs 1 'global' view and masks 'random'; uses the first of each.

    Of clips it is VideoMAE, with norm_pix "channel". `decoder_mask`, the name of another mask
    (of `running_cell`), makes it VideoMAE v2: the decoder is asked for what this mask leaves alone,
    and the loss counts what of that is hidden from the encoder. Our class token goes through the
    decoder, too; VideoMAE has none. In which order patches go through it changes nothing.

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
        decoder_mask: str | None = None,
        norm_pix: Scale = True,
    ) -> None:
        super().__init__()
        mask = patch_mask("mae", encoder, spec, "random", axes=(2, 3))
        self.encoder = encoder
        self.norm_pix = norm_pix
        self.patch_size = mask.patch
        self.decoder_mask = decoder_mask
        self.num_visible = mask.patches - hidden_patches("mae", mask, "random")
        self.num_asked = self.count_asked(encoder, spec, decoder_mask)
        if decoder_mask is not None and decoder_window is not None:
            raise ValueError(
                f"decoder_mask = {decoder_mask} leaves no whole windows; leave decoder_window out"
            )
        self.decoder = MaskedDecoder(
            feature_dim(encoder, "mae"), math.prod(mask.patch) * spec.views["global"].size("C"),
            mask.grid, dim=decoder_dim, heads=decoder_heads, depth=decoder_depth,
            window=decoder_window,
        )  # fmt: skip

    def forward(self, batch: Batch) -> Output:
        """Encode what is visible, decode everything, compare what was hidden."""
        images_BCHW, hidden_BN = batch.views["global"][0], batch.masks["random"][0]
        order_BN = visible_first(hidden_BN)
        encoder = cast(PatchEncoder, self.encoder)
        tokens_BSD = encoder.tokens(images_BCHW, order_BN[:, : self.num_visible])
        asked_BQ = self.asked(batch)
        if asked_BQ is None:
            pred_BNP = self.decoder(tokens_BSD, order_BN)
        else:
            pred_BNP = self.decoder.asked(tokens_BSD, order_BN[:, : self.num_visible], asked_BQ)
        loss = mae_loss(
            pred_BNP, images_BCHW, hidden_BN, patch_size=self.patch_size, normalise=self.norm_pix,
            asked_BQ=asked_BQ,
        )  # fmt: skip
        # 0 = every image gets the same picture: the decoder ignores the encoder
        return Output(loss, {"prediction_std": spread_over_images(pred_BNP.detach())})

    @staticmethod
    def count_asked(encoder: nn.Module, spec: BatchSpec, name: str | None) -> int:
        """Count what the decoder is asked for by the mask of a name; 0: there is none.

        Raises:
            ContractError: it does not suit.
        """
        if name is None:
            return 0
        mask = patch_mask("mae", encoder, spec, name, axes=(2, 3))
        return mask.patches - hidden_patches("mae", mask, name)

    def asked(self, batch: Batch) -> Tensor | None:
        """Number the patches that the decoder is asked for, (B, Q); None: all of them."""
        if self.decoder_mask is None:
            return None
        return visible_first(batch.masks[self.decoder_mask][0])[:, : self.num_asked]
