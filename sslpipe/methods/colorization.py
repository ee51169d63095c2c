"""Colorization: guess each place's colour, as one of 313 classes, from the lightness around it.

Zhang et al. 2016, "Colorful image colorization", arXiv:1603.08511; richzhang/colorization,
resources/caffe_traininglayers.py. K bins, N nearest bins of a colour here. The bins are a grid of
(a, b), about those that sRGB can show.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import Batch, BatchSpec
from ..encoders.protocols import MapEncoder
from ..errors import ContractError
from .method import Method, Output
from .parts.checks import check_axes, positive, shares
from .parts.collectives import all_mean
from .parts.feature_maps import MapDecoder, map_shape
from .parts.heads import at_least_fp32

STEP = 10  # between bins, in a and b
LEAST_A = -90
# Least and greatest b for each a, ascending: pts_in_hull.npy of richzhang/colorization, which was
# shipped and not explained (in text: OpenCV, samples/dnn/colorization.cpp).
RANGES = (
    *((50, 90), (20, 90), (0, 90), (-20, 90), (-30, 100), (-40, 100), (-50, 100), (-50, 100)),
    *((-60, 100), (-70, 100), (-80, 90), (-80, 90), (-90, 90), (-100, 90), (-100, 80)),
    *((-110, 80), (-110, 80), (-110, 70), (-110, 70), (-90, 0)),
)


def ab_bins() -> Tensor:
    """List the centres of the bins in the official order, a, then b, ascending: (313, 2) float32.

    Some, like (-90, 50), are the nearest to no colour; no colour is further than 7.1 from all.
    """
    bins = [
        (LEAST_A + STEP * row, b)
        for row, (low, high) in enumerate(RANGES)
        for b in range(low, high + 1, STEP)
    ]
    return torch.tensor(bins, dtype=torch.float32)


def soft_encode(
    ab_B2HW: Tensor, bins_K2: Tensor, *, neighbours: int = 10, sigma: float = 5.0
) -> tuple[Tensor, Tensor]:
    """Find the nearest bins (B, H, W, N), nearest first, and their weights, of sum 1: section 2.2.

    10 neighbours as in the code; the paper says 5.
    """
    a, b = (ab_B2HW[:, i, :, :, None] for i in (0, 1))
    squares_BHWK = (a - bins_K2[:, 0]).square() + (b - bins_K2[:, 1]).square()
    squares_BHWN, index_BHWN = squares_BHWK.topk(neighbours, largest=False)
    return index_BHWN, F.softmax(-squares_BHWN / (2 * sigma**2), dim=-1)


def rebalancing(prior_K: Tensor, *, gamma: float = 0.5) -> Tensor:
    """Weigh rare bins more, eq. 4: ~ 1 / ((1 - gamma) prior + gamma uniform).

    The mean under the prior is 1. `gamma` is lambda in the paper. Uniform over the bins that occur;
    those that do not weigh 0.
    """
    occurs_K = (prior_K > 0).to(prior_K.dtype)
    mixed_K = (1 - gamma) * prior_K + gamma * occurs_K / occurs_K.sum()
    weight_K = occurs_K / mixed_K.clamp(min=torch.finfo(mixed_K.dtype).tiny)
    return weight_K / (prior_K * weight_K).sum()


def has_colour(ab_B2HW: Tensor, threshold: float = 5.0) -> Tensor:
    """Tell where some |a| or |b| exceeds the threshold: (B,) bool (NonGrayMaskLayer)."""
    return (ab_B2HW.abs() > threshold).flatten(1).any(1)


def colorization_loss(
    logits_BKHW: Tensor, index_BHWN: Tensor, weight_BHWN: Tensor, rebalance_BHW: Tensor
) -> Tensor:
    """Eq. 2: cross entropy to the soft-encoded colour, times the weight of the place; the mean.

    The official layer multiplies the gradient by these weights and reports the loss without: the
    gradient is the same (of a mean, not of a sum over places), the value is not.
    """
    check_axes(
        "colorization_loss", logits_BKHW=logits_BKHW, index_BHWN=index_BHWN,
        weight_BHWN=weight_BHWN, rebalance_BHW=rebalance_BHW,
    )  # fmt: skip
    with torch.autocast(logits_BKHW.device.type, enabled=False):
        log_p_BHWK = F.log_softmax(at_least_fp32(logits_BKHW), dim=1).permute(0, 2, 3, 1)
        entropy_BHW = -(weight_BHWN * log_p_BHWK.gather(-1, index_BHWN)).sum(-1)
        return (entropy_BHW * rebalance_BHW).mean()


class Colorization(Method):
    """Needs targets 'colorization': (a, b) of places of one view, which shows lightness alone.

    The official prior of colours is ImageNet's, from a file. Ours is counted over the batches of
    the run so far, all ranks', this one among them; it is saved with the run.

    Raises:
        ContractError: the targets are classes, or not two numbers for each place.
    """

    encoder: nn.Module
    bins_K2: Tensor
    counts_K: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        spec: BatchSpec,
        *,
        decoder: tuple[int, ...] = (512, 256, 256),
        neighbours: int = 10,
        sigma: float = 5.0,
        gamma: float = 0.5,
    ) -> None:
        super().__init__()
        spec.require("colorization", views={}, targets=("colorization",))
        target = spec.targets["colorization"]
        if target.classes is not None or target.shape[:1] != (2,):
            raise ContractError(
                f"colorization needs targets of shape (2, h, w), not {target.shape}; "
                "set targets.colorization.task to colorization"
            )
        bins_K2 = ab_bins()
        if not 1 <= neighbours <= len(bins_K2):
            raise ValueError(f"neighbours = {neighbours}; set it in [1, {len(bins_K2)}], the bins")
        positive(sigma=sigma)
        shares(gamma=gamma)
        self.view = target.view
        self.neighbours, self.sigma, self.gamma = neighbours, sigma, gamma
        self.encoder = encoder
        self.register_buffer("bins_K2", bins_K2, persistent=False)
        # float64: counts of pixels outgrow the 24 bits of float32 within hours
        self.register_buffer("counts_K", torch.zeros(len(self.bins_K2), dtype=torch.float64))
        dim, *_ = map_shape("colorization", encoder, spec.views[target.view])
        self.decoder = MapDecoder(dim, decoder, len(self.bins_K2))

    def forward(self, batch: Batch) -> Output:
        """Guess the colours of all views in one pass; images without colour teach nothing."""
        images_BCHW = batch.views[self.view].flatten(0, 1)
        ab_B2HW = batch.targets["colorization"].flatten(0, 1)
        index_BHWN, weight_BHWN = soft_encode(
            ab_B2HW, self.bins_K2, neighbours=self.neighbours, sigma=self.sigma
        )
        nearest_BHW = index_BHWN[..., 0]
        rebalance_BHW = self.rebalance(nearest_BHW) * has_colour(ab_B2HW)[:, None, None]
        maps = cast(MapEncoder, self.encoder).maps(images_BCHW)
        logits_BKHW = self.decoder(maps, tuple(ab_B2HW.shape[-2:]))
        loss = colorization_loss(logits_BKHW, index_BHWN, weight_BHWN, rebalance_BHW)
        accuracy = (logits_BKHW.argmax(1) == nearest_BHW).float().mean()
        return Output(loss, {"accuracy": accuracy})

    @torch.no_grad()
    def rebalance(self, nearest_BHW: Tensor) -> Tensor:
        """Count these colours, then weigh them by their rarity."""
        places = nearest_BHW.flatten()
        ones = torch.ones_like(places, dtype=self.counts_K.dtype)
        self.counts_K += all_mean(torch.zeros_like(self.counts_K).index_add_(0, places, ones))
        weight_K = rebalancing(self.counts_K / self.counts_K.sum(), gamma=self.gamma)
        return weight_K.float()[nearest_BHW]
