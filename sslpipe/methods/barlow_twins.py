"""Barlow Twins: the features of two views correlate one to one, and not with each other.

Zbontar et al. 2021, "Barlow Twins: self-supervised learning via redundancy reduction",
arXiv:2103.03230; facebookresearch/barlowtwins, main.py.
"""

import torch
from torch import Tensor, nn

from ..batch import Batch, BatchSpec
from .method import Method, Output
from .parts.checks import check_axes, not_negative, positive
from .parts.collapse import COVARIANCE_CAUSES, embeddings_alike
from .parts.collectives import joint_mean
from .parts.heads import at_least_fp32, feature_dim, hidden_norm_mlp
from .simclr import pair_monitors


def barlow_twins_loss(z1_BD: Tensor, z2_BD: Tensor, *, redundancy: float) -> Tensor:
    """Eq. 1: sum of (1 - C_ii)^2, plus `redundancy` (lambda) times that of C_ij^2, i != j.

    C is that of the joined batch of all ranks. A sum over D features, as officially: `redundancy`
    and learning rates belong to one D.
    """
    check_axes("barlow_twins_loss", z1_BD=z1_BD, z2_BD=z2_BD)
    with torch.autocast(z1_BD.device.type, enabled=False):
        c_DD = cross_correlation(z1_BD, z2_BD)
        on_diagonal = (c_DD.diagonal() - 1).square().sum()
        return on_diagonal + redundancy * off_diagonal(c_DD).square().sum()


def cross_correlation(z1_BD: Tensor, z2_BD: Tensor) -> Tensor:
    """Correlate the features of two views, eq. 2, over the joined batch: (D, D) in at least fp32.

    Features are standardised by the statistics of the joined batch, as by the official BN without
    scale and shift: variance divided by N, with 1e-5 added.
    """
    z_VBD = at_least_fp32(torch.stack([z1_BD, z2_BD]))
    z_VBD = z_VBD - joint_mean(z_VBD.mean(1, keepdim=True))
    var_V1D = joint_mean(z_VBD.square().mean(1, keepdim=True))
    z1_BD, z2_BD = z_VBD * (var_V1D + 1e-5).rsqrt()
    # Officially autograd does not see the sum over W ranks, and DDP's average makes gradients
    # 1/W of those of the joined batch. Here they are the joined batch's own for every W. LARS
    # cancels the factor but for biases and norms, whose learning rate the authors tuned with it.
    return joint_mean(z1_BD.T @ z2_BD / len(z1_BD))


def off_diagonal(x_DD: Tensor) -> Tensor:
    """View the D (D - 1) elements off the diagonal of a contiguous square matrix."""
    dim = len(x_DD)
    return x_DD.flatten()[:-1].view(dim - 1, dim + 1)[:, 1:]


class BarlowTwins(Method):
    """Needs 2 'global' views; uses the first two."""

    encoder: nn.Module
    collapse_signs = (embeddings_alike,)
    collapse_causes = COVARIANCE_CAUSES

    def __init__(
        self,
        encoder: nn.Module,
        spec: BatchSpec,
        *,
        projector: tuple[int, ...] = (8192, 8192, 8192),
        redundancy: float = 0.0051,
    ) -> None:
        super().__init__()
        spec.require("barlow_twins", views={"global": 2})
        positive(projector=projector)
        not_negative(redundancy=redundancy)
        self.redundancy = redundancy
        self.encoder = encoder
        self.projector = hidden_norm_mlp((feature_dim(encoder, "barlow_twins"), *projector))

    def forward(self, batch: Batch) -> Output:
        """Encode view by view, as officially, so that batch norm never mixes kinds of views."""
        views = batch.views["global"][:2]
        z1_BD, z2_BD = (self.projector(self.encoder(view_BCHW)) for view_BCHW in views)
        loss = barlow_twins_loss(z1_BD, z2_BD, redundancy=self.redundancy)
        return Output(loss, pair_monitors(z1_BD, z2_BD))
