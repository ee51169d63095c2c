"""SimCLR: two views of an image agree, against all other images of the global batch.

Chen et al. 2020, "A simple framework for contrastive learning", arXiv:2002.05709. X = 2B here.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import Batch, BatchSpec
from .method import Method, Output
from .parts.checks import check_axes, positive
from .parts.collapse import CONTRASTIVE_CAUSES, embeddings_alike
from .parts.collectives import gather, own_places
from .parts.heads import at_least_fp32, batch_norm_mlp, feature_dim


def nt_xent(z1_BD: Tensor, z2_BD: Tensor, *, temperature: float) -> Tensor:
    """Eq. 1: cross entropy of each of the 2B views to its pair; negatives come from all ranks.

    Embeddings are L2-normalised inside. The mean over ranks, which DDP takes, is the loss of the
    joined batch, and so are the gradients.
    """
    check_axes("nt_xent", z1_BD=z1_BD, z2_BD=z2_BD)
    with torch.autocast(z1_BD.device.type, enabled=False):
        z_XD = normalised(z1_BD, z2_BD)
        all_YD = gather(z_XD)  # with gradient: a negative on another rank must be pushed too
        own_X = own_places(z_XD)
        logits_XY = z_XD @ all_YD.T / temperature
        logits_XY = logits_XY.scatter(1, own_X[:, None], -torch.inf)  # not its own negative
        # The paper's mean over 2N. The official code adds the means of both directions
        # (objective.py:34-88), twice this: a learning rate stated for its loss is doubled here
        # under SGD, and kept under LARS, whose trust ratio cancels the factor (but for BN and
        # biases, which it leaves out, and for the weight decay inside the norm).
        return F.cross_entropy(logits_XY, own_X.roll(len(z1_BD)))


def normalised(z1_BD: Tensor, z2_BD: Tensor) -> Tensor:
    """Put both views' embeddings on the unit sphere, (2B, D) in at least fp32."""
    return F.normalize(at_least_fp32(torch.cat([z1_BD, z2_BD])), dim=1)


@torch.no_grad()
def pair_monitors(z1_BD: Tensor, z2_BD: Tensor) -> dict[str, Tensor]:
    """Tell the top-1 accuracy among this rank's samples, and SimSiam's collapse monitor.

    `embedding_std` is the std of each channel of the normalised embeddings, averaged: about
    1 / sqrt(D) when healthy, 0 at collapse.
    """
    z_XD = normalised(z1_BD, z2_BD)
    nearest_X = (z_XD @ z_XD.T).fill_diagonal_(-torch.inf).argmax(1)
    pair_X = torch.arange(len(z_XD), device=z_XD.device).roll(len(z1_BD))
    return {
        "top1": (nearest_X == pair_X).float().mean(),
        "embedding_std": z_XD.std(0).mean(),
    }


class SimCLR(Method):
    """Needs 2 'global' views; uses the first two."""

    encoder: nn.Module
    collapse_signs = (embeddings_alike,)
    collapse_causes = CONTRASTIVE_CAUSES

    def __init__(
        self,
        encoder: nn.Module,
        spec: BatchSpec,
        *,
        temperature: float = 0.1,
        projector: tuple[int, ...] = (2048, 128),
    ) -> None:
        super().__init__()
        spec.require("simclr", views={"global": 2})
        positive(temperature=temperature, projector=projector)
        self.temperature = temperature
        self.encoder = encoder
        self.chance_loss = math.log(2 * spec.global_size - 1)
        self.projector = batch_norm_mlp((feature_dim(encoder, "simclr"), *projector))

    def forward(self, batch: Batch) -> Output:
        """Encode both views stacked, so that BN sees them together, as officially."""
        views_VBCHW = batch.views["global"][:2]
        z_XD = self.projector(self.encoder(views_VBCHW.flatten(0, 1)))
        z1_BD, z2_BD = z_XD.chunk(2)
        loss = nt_xent(z1_BD, z2_BD, temperature=self.temperature)
        return Output(loss, pair_monitors(z1_BD, z2_BD))
