"""data2vec 2.0: from few visible patches, guess what a teacher's layers make of the whole image.

Baevski et al. 2022, "Efficient self-supervised learning with contextualized target
representations", arXiv:2212.07525; fairseq, examples/data2vec/models/data2vec2.py.
M masks per image (multi-mask training, section 3.3), R = M * B masked images, mask by mask, L
blocks here. Deviation: timm's ViT normalises before attention and MLP, the official one after.
"""

import copy
import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import Batch, BatchSpec, ViewSpec
from ..encoders.monitors import spread_over_images
from ..encoders.patches import on_grid, take, visible_first
from ..encoders.protocols import LayeredEncoder, PatchEncoder
from ..errors import ContractError
from .method import Method, Output
from .parts.checks import check_axes, not_negative, positive, shares
from .parts.collapse import MASKED_CAUSES, predictions_alike
from .parts.heads import at_least_fp32, feature_dim
from .parts.patches import hidden_patches, patch_mask
from .parts.teachers import ema_update, frozen_copy, linear_between


def data2vec_targets(outputs_LBND: Tensor, *, top_k: int) -> Tensor:
    """Section 3.2: the mean of the last `top_k` layers, each instance-normed; (B, N, D), fp32.

    Instance norm: each channel of each image over its patches, without which one layer or the
    patches' common part decides (and a constant output would be a solution). Layer norm of the
    mean is in the configuration for images.
    """
    with torch.autocast(outputs_LBND.device.type, enabled=False):
        outputs_LBND = at_least_fp32(outputs_LBND[-top_k:])
        var, mean = torch.var_mean(outputs_LBND, dim=2, correction=0, keepdim=True)
        target_BND = ((outputs_LBND - mean) / (var + 1e-5).sqrt()).mean(0)
        return F.layer_norm(target_BND, target_BND.shape[-1:])


def data2vec_error(pred: Tensor, target: Tensor) -> Tensor:
    """Squared error of vectors (..., D), summed over D and divided by sqrt(D): `d2v_loss`."""
    difference = at_least_fp32(pred) - target.detach()
    return difference.square().sum(-1) / math.sqrt(pred.shape[-1])


def data2vec_loss(pred_MBND: Tensor, target_BND: Tensor, hidden_MBN: Tensor) -> Tensor:
    """Section 3.3: mean error of the hidden patches of all masks; one target for all masks."""
    check_axes("data2vec_loss", pred_MBND=pred_MBND, target_BND=target_BND, hidden_MBN=hidden_MBN)
    error_MBN = data2vec_error(pred_MBND, target_BND)
    return (error_MBN * hidden_MBN).sum() / hidden_MBN.sum()


class Data2Vec2(Method):
    """Needs 1 'global' view and masks 'inverse', as many as an image shall be used for."""

    encoder: nn.Module
    # the student is kept: official fine-tuning loads its weights
    encoders = (("student", "encoder"), ("teacher", "teacher"))
    collapse_signs = (predictions_alike,)
    collapse_causes = MASKED_CAUSES

    def __init__(
        self,
        encoder: nn.Module,
        spec: BatchSpec,
        *,
        top_k: int = 10,
        momentum: tuple[float, float] = (0.9998, 0.99999),
        momentum_warmup: float = 0.2665,  # 100,000 of 375,300 steps
        cls_weight: float = 2.56,  # officially 0.01 of a SUM over 256 masked images: ours is a mean
        mask_noise: float = 0.01,
        decoder_dim: int = 768,
        decoder_depth: int = 6,
        decoder_groups: int = 16,
    ) -> None:
        super().__init__()
        mask = patch_mask("data2vec2", encoder, spec, "inverse")
        check_layers(encoder, spec.views["global"], top_k)
        shares(momentum=momentum, momentum_warmup=momentum_warmup)
        not_negative(cls_weight=cls_weight, mask_noise=mask_noise)
        self.num_visible = mask.patches - hidden_patches("data2vec2", mask, "inverse")
        self.top_k = top_k
        self.momentum = momentum
        self.momentum_warmup = momentum_warmup
        self.cls_weight = cls_weight
        # the student is what the authors fine-tune: they drop the teacher after pretraining
        self.encoder = encoder
        self.teacher = frozen_copy(encoder)
        self.decoder = ConvDecoder(
            feature_dim(encoder, "data2vec2"), mask.grid, dim=decoder_dim, depth=decoder_depth,
            groups=decoder_groups, noise=mask_noise,
        )  # fmt: skip

    def forward(self, batch: Batch) -> Output:
        """The teacher sees each image once and whole, the student M times in part."""
        images_BCHW, hidden_MBN = batch.views["global"][0], batch.masks["inverse"]
        with torch.no_grad():
            teacher = cast(LayeredEncoder, self.teacher)
            outputs_LBND = teacher.feed_forwards(images_BCHW)[:, :, 1:]
            target_BND = data2vec_targets(outputs_LBND, top_k=self.top_k)
        order_RN = visible_first(hidden_MBN.flatten(0, 1))
        student = cast(PatchEncoder, self.encoder)
        tokens_RSD = student.tokens(images_BCHW, order_RN[:, : self.num_visible])
        pred_MBND = self.decoder(tokens_RSD, order_RN).view(len(hidden_MBN), *target_BND.shape)
        cls_MBD = tokens_RSD[:, 0].view(len(hidden_MBN), len(images_BCHW), -1)
        patch_loss = data2vec_loss(pred_MBND, target_BND, hidden_MBN)
        cls_loss = data2vec_error(cls_MBD, target_BND.mean(1)).mean()
        metrics = {
            "patch_loss": patch_loss.detach(),
            "cls_loss": cls_loss.detach(),
            # 0 = all images and places alike: collapse (the authors stop a run for it)
            "prediction_std": spread_over_images(pred_MBND.detach().flatten(0, 2)),
            "target_std": spread_over_images(target_BND.flatten(0, 1)),
        }
        return Output(patch_loss + self.cls_weight * cls_loss, metrics)

    def after_step(self, progress: float) -> None:
        """Move the teacher; its momentum rises over `momentum_warmup` of the run, then stays."""
        annealed = min(progress / max(self.momentum_warmup, 1e-12), 1.0)
        ema_update(self.teacher, self.encoder, linear_between(*self.momentum, annealed))


def check_layers(encoder: nn.Module, view: ViewSpec, top_k: int) -> None:
    """Check that the encoder has `top_k` layers, which are counted on the meta device.

    Raises:
        ContractError: it does not show its layers.
        ValueError: it has fewer than `top_k`.
    """
    if not isinstance(encoder, LayeredEncoder):
        raise ContractError(
            f"data2vec2 needs an encoder with feed_forwards(images); {type(encoder).__name__} has "
            "none. Set train.backbone to a ViT, such as vit_base"
        )
    twin = copy.deepcopy(encoder).to("meta").eval()
    image = torch.empty(1, *view.shape, device="meta")
    layers = len(cast(LayeredEncoder, twin).feed_forwards(image))
    if not 1 <= top_k <= layers:
        raise ValueError(f"top_k = {top_k}; set it in [1, {layers}], the encoder's layers")


class ConvDecoder(nn.Module):
    """Put noise at the hidden places, then convolve the grid of patches; R rows, S visible patches.

    `depth` grouped 3 x 3 convolutions with layer norm, GELU and residuals, then a linear layer:
    fairseq, examples/data2vec/models/modalities/modules.py (Decoder2d), base.py (decoder_input).
    """

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
        """Turn (R, 1 + S, D) tokens and `visible_first` of the mask into (R, N, D) predictions."""
        x = on_grid(self.whole(tokens_RSD[:, 1:], order_RN), self.grid)
        for convolution in self.convolutions:
            y = F.gelu(channel_norm(convolution(x)))
            x = x + y if x.shape == y.shape else y  # no residual where the width changes
        return cast(Tensor, self.predict(x.flatten(2).mT))

    def whole(self, visible_RSD: Tensor, order_RN: Tensor) -> Tensor:
        """Lay out all patches in raster order, with normal noise where they are hidden."""
        missing = order_RN.shape[1] - visible_RSD.shape[1]
        noise = torch.randn_like(visible_RSD[:, :1].expand(-1, missing, -1)) * self.noise
        return take(torch.cat([visible_RSD, noise], dim=1), order_RN.argsort(dim=1))


def channel_norm(x_BCHW: Tensor) -> Tensor:
    """Normalise the channels of each place as a layer norm without weights does; shape stays."""
    return F.layer_norm(x_BCHW.movedim(1, 3), x_BCHW.shape[1:2]).movedim(3, 1)
