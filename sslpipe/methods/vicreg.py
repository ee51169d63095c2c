"""VICReg: views agree (invariance), features vary (variance) and do not repeat (covariance).

Bardes et al. 2021, "VICReg: variance-invariance-covariance regularization for self-supervised
learning", arXiv:2105.04906; facebookresearch/vicreg, main_vicreg.py. X samples of the global batch.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import Batch, BatchSpec
from .barlow_twins import off_diagonal
from .method import Method, Numbers, Output, Sign
from .parts.checks import check_axes, not_negative, positive
from .parts.collapse import COVARIANCE_CAUSES, embeddings_alike
from .parts.collectives import gather
from .parts.heads import at_least_fp32, feature_dim, hidden_norm_mlp
from .simclr import pair_monitors

SHORT = 0.9  # of 1, by which standard deviations fall short when they collapse


class Terms(NamedTuple):
    """The three terms of the loss, before they are weighted."""

    invariance: Tensor
    variance: Tensor
    covariance: Tensor

    def weighted(self, invariance: float, variance: float, covariance: float) -> Tensor:
        """Add the terms with these weights."""
        return (
            invariance * self.invariance + variance * self.variance + covariance * self.covariance
        )


def vicreg_loss(
    x_BD: Tensor,
    y_BD: Tensor,
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
) -> Tensor:
    """Weigh and add the terms, eq. 6; a scalar, with the official code's scales.

    See `vicreg_terms`: embeddings are not normalised, and two samples over all ranks are the least.
    """
    return vicreg_terms(x_BD, y_BD).weighted(invariance, variance, covariance)


def vicreg_terms(x_BD: Tensor, y_BD: Tensor) -> Terms:
    """Compute eq. 5, 1 and 4; variance and covariance over the joined batch of all ranks.

    As coded: the squared distance is averaged over D, the variance terms of the two views are
    halved, the covariance terms are not. The paper sums over D and halves nothing.
    """
    check_axes("vicreg_loss", x_BD=x_BD, y_BD=y_BD)
    with torch.autocast(x_BD.device.type, enabled=False):
        x_BD, y_BD = at_least_fp32(x_BD), at_least_fp32(y_BD)
        invariance = F.mse_loss(x_BD, y_BD)
        all_x_XD, all_y_XD = gather(x_BD), gather(y_BD)  # with gradient, as officially
        return Terms(
            invariance,
            (variance_term(all_x_XD) + variance_term(all_y_XD)) / 2,
            covariance_term(all_x_XD) + covariance_term(all_y_XD),
        )


def variance_term(z_XD: Tensor) -> Tensor:
    """Average over features how far standard deviations fall short of 1: eq. 1 and 2, in [0, 1]."""
    # without the 1e-4 the gradient at a constant feature is NaN
    return F.relu(1 - (z_XD.var(0) + 1e-4).sqrt()).mean()


def covariance_term(z_XD: Tensor) -> Tensor:
    """Sum the squared covariances of different features, over D: eq. 3 and 4."""
    z_XD = z_XD - z_XD.mean(0)
    covariance_DD = z_XD.T @ z_XD / (len(z_XD) - 1)
    return off_diagonal(covariance_DD).square().sum() / z_XD.shape[1]


def variance_lost(row: Numbers, _: Numbers) -> Sign | None:
    """Compare the variance term with 1, its value at collapse.

    `embedding_std` cannot see embeddings that shrink in proportion: it normalises them.
    """
    if "variance" not in row:
        return None
    term = row["variance"]
    said = (
        f"collapse: the embeddings shrink to a point (variance term = {term:.2f}, above "
        f"{SHORT}: standard deviations of about {1 - term:.2f} instead of 1)"
    )
    return Sign("variance", term > SHORT, said)


class VICReg(Method):
    """Needs 2 'global' views; uses the first two."""

    encoder: nn.Module
    collapse_signs = (embeddings_alike, variance_lost)
    collapse_causes = COVARIANCE_CAUSES

    def __init__(
        self,
        encoder: nn.Module,
        spec: BatchSpec,
        *,
        projector: tuple[int, ...] = (8192, 8192, 8192),
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
    ) -> None:
        super().__init__()
        spec.require("vicreg", views={"global": 2})
        positive(projector=projector)
        not_negative(invariance=invariance, variance=variance, covariance=covariance)
        self.weights = (invariance, variance, covariance)
        self.encoder = encoder
        sizes = (feature_dim(encoder, "vicreg"), *projector)
        self.projector = hidden_norm_mlp(sizes, hidden_bias=True)

    def forward(self, batch: Batch) -> Output:
        """Encode view by view, as officially, so that batch norm never mixes kinds of views."""
        views = batch.views["global"][:2]
        z1_BD, z2_BD = (self.projector(self.encoder(view_BCHW)) for view_BCHW in views)
        terms = vicreg_terms(z1_BD, z2_BD)
        metrics = {name: term.detach() for name, term in terms._asdict().items()}
        return Output(terms.weighted(*self.weights), metrics | pair_monitors(z1_BD, z2_BD))
