"""Context encoder: paint what stood in the hole.

Pathak et al. 2016, "Context encoders: feature learning by inpainting", arXiv:1604.07379;
pathak22/context-encoder, train.lua. Without the adversarial loss, which makes pictures sharper: the
paper trains features for its tasks with the L2 loss alone (section 5.2), and so do we.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import Batch, BatchSpec
from ..encoders.monitors import spread_over_images
from ..encoders.protocols import MapEncoder
from ..errors import ContractError
from .method import Method, Output
from .parts.checks import check_axes, not_negative
from .parts.collapse import predictions_alike
from .parts.feature_maps import MapDecoder, map_shape
from .parts.heads import at_least_fp32
from .parts.patches import hidden_patches


def pixels_of(hidden_BN: Tensor, grid: tuple[int, ...], patch: int) -> Tensor:
    """Turn a mask of patches into one of pixels: (B, 1, H, W) float, 1 = hidden."""
    hidden_B1HW = hidden_BN.view(-1, 1, *grid).to(torch.float32)
    return F.interpolate(hidden_B1HW, scale_factor=patch, mode="nearest")


def without_margin(region_B1HW: Tensor, margin: int) -> Tensor:
    """Take `margin` pixels off a region along its edge; the picture's own edge is none.

    1 = in the region; shape and dtype stay.
    """
    outside = F.max_pool2d(1 - region_B1HW, 2 * margin + 1, stride=1, padding=margin)
    return 1 - outside


def inpainting_loss(
    pred_BCHW: Tensor,
    images_BCHW: Tensor,
    region_B1HW: Tensor,
    hole_B1HW: Tensor,
    *,
    overlap_weight: float = 10.0,
) -> Tensor:
    """Eq. 1: squared error of the region, averaged over its pixels and channels; a scalar.

    `region_B1HW`, `hole_B1HW`: 1 = belongs to it, else 0; the hole lies in the region.

    The part of the region that is no hole is visible, and weighs `overlap_weight` times as much: so
    the hole is painted to match its rim (section 4.1; overlapPred and wtl2Matrix of train.lua).
    """
    check_axes(
        "inpainting_loss", pred_BCHW=pred_BCHW, images_BCHW=images_BCHW,
        region_B1HW=region_B1HW, hole_B1HW=hole_B1HW,
    )  # fmt: skip
    error_BCHW = (at_least_fp32(pred_BCHW) - at_least_fp32(images_BCHW)).square()
    weight_B1HW = hole_B1HW + overlap_weight * (region_B1HW - hole_B1HW)
    return (error_BCHW * weight_B1HW).sum() / (region_B1HW.sum() * images_BCHW.shape[1])


class Inpainting(Method):
    """Needs 1 'global' view and masks 'hole' over it; uses the first of each.

    Any encoder with maps and the paper's decoder; its channel-wise layer between them is left out,
    as modern encoders see the whole picture at every place of their maps.

    Raises:
        ContractError: the mask is of another view than 'global', or its patches are no
            larger than twice the overlap.
    """

    encoder: nn.Module
    collapse_signs = (predictions_alike,)

    def __init__(
        self,
        encoder: nn.Module,
        spec: BatchSpec,
        *,
        decoder: tuple[int, ...] = (512, 256, 128, 64, 64),
        overlap: int = 4,
        overlap_weight: float = 10.0,
        fill: float = 0.0,
    ) -> None:
        super().__init__()
        spec.require("inpainting", views={"global": 1}, masks=("hole",))
        mask = spec.masks["hole"]
        # the mean over ranks is that of the joined batch only if all regions are equally large
        hidden_patches("inpainting", mask, "hole")
        if mask.view != "global":
            raise ContractError(
                f"inpainting paints 'global'; set masks.hole.view to it, not {mask.view!r}"
            )
        if not 0 <= 2 * overlap < mask.patch[0]:
            raise ContractError(
                f"inpainting: overlap = {overlap} px either side may close a hole of one patch of "
                f"{mask.patch[0]} px; set method.inpainting.overlap or masks.hole.patch_size"
            )
        not_negative(overlap_weight=overlap_weight)
        self.grid, self.patch_size = mask.grid, mask.patch[0]
        self.overlap, self.overlap_weight, self.fill = overlap, overlap_weight, fill
        self.encoder = encoder
        dim, *_ = map_shape("inpainting", encoder, spec.views["global"])
        self.decoder = MapDecoder(dim, decoder, spec.views["global"].size("C"))

    def forward(self, batch: Batch) -> Output:
        """Cut the hole, encode, paint, compare the region.

        `fill` is the hole's value: 0 after Normalize is the mean colour, as the paper's.
        """
        images_BCHW = batch.views["global"][0]
        region_B1HW = pixels_of(batch.masks["hole"][0], self.grid, self.patch_size)
        hole_B1HW = without_margin(region_B1HW, self.overlap)
        seen_BCHW = images_BCHW * (1 - hole_B1HW) + self.fill * hole_B1HW
        maps = cast(MapEncoder, self.encoder).maps(seen_BCHW)
        pred_BCHW = self.decoder(maps, tuple(images_BCHW.shape[-2:]))
        loss = inpainting_loss(
            pred_BCHW, images_BCHW, region_B1HW, hole_B1HW, overlap_weight=self.overlap_weight
        )
        # 0 = every image gets the same picture: the decoder ignores the encoder
        spread = spread_over_images(pred_BCHW.detach())
        return Output(loss, {"prediction_std": spread})
