"""BYOL: predict an EMA target's projection of one view from the other view.

Grill et al. 2020, "Bootstrap your own latent", arXiv:2006.07733; deepmind/deepmind-research, byol.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import Batch, BatchSpec
from .method import Method, Output
from .parts.checks import check_axes, positive, shares
from .parts.collapse import PREDICTOR_CAUSES, embeddings_alike, views_agree
from .parts.heads import at_least_fp32, feature_dim, hidden_norm_mlp
from .parts.teachers import cosine_between, ema_update, frozen_copy
from .simclr import pair_monitors


def byol_loss(p_BD: Tensor, z_BD: Tensor) -> Tensor:
    """Eq. 2: squared distance of normalised prediction and target, 2 - 2 cos; mean over samples.

    No gradient reaches the target.
    """
    check_axes("byol_loss", p_BD=p_BD, z_BD=z_BD)
    with torch.autocast(p_BD.device.type, enabled=False):
        # byol_experiment.py normalises by rsqrt(max(sum of squares, 1e-12))
        p_BD = F.normalize(at_least_fp32(p_BD), dim=1, eps=1e-6)
        z_BD = F.normalize(at_least_fp32(z_BD.detach()), dim=1, eps=1e-6)
        return (p_BD - z_BD).square().sum(1).mean()


class BYOL(Method):
    """Needs 2 'global' views; the loss lies in [0, 8], the sum of both directions."""

    collapse_signs = (embeddings_alike, views_agree)
    collapse_causes = PREDICTOR_CAUSES
    # the online encoder is kept, as officially
    encoders = (("student", "online.0"), ("teacher", "target.0"))

    def __init__(
        self,
        encoder: nn.Module,
        spec: BatchSpec,
        *,
        projector: tuple[int, ...] = (4096, 256),
        predictor_hidden: int = 4096,
        momentum: float = 0.996,
    ) -> None:
        super().__init__()
        spec.require("byol", views={"global": 2})
        positive(projector=projector, predictor_hidden=predictor_hidden)
        shares(momentum=momentum)
        self.momentum = momentum
        sizes = (feature_dim(encoder, "byol"), *projector)
        self.online = nn.Sequential(encoder, hidden_norm_mlp(sizes, hidden_bias=True))
        self.predictor = hidden_norm_mlp(
            (projector[-1], predictor_hidden, projector[-1]), hidden_bias=True
        )
        # officially drawn anew; an encoder that is handed over can only be copied
        self.target = frozen_copy(self.online)

    def forward(self, batch: Batch) -> Output:
        """Encode view by view, as officially, so that batch norm never mixes kinds of views.

        The target is in train mode, as officially: its batch statistics are its own.
        """
        views = batch.views["global"][:2]
        p1_BD, p2_BD = (self.predictor(self.online(view_BCHW)) for view_BCHW in views)
        with torch.no_grad():
            z1_BD, z2_BD = (self.target(view_BCHW) for view_BCHW in views)
        loss = byol_loss(p1_BD, z2_BD) + byol_loss(p2_BD, z1_BD)
        # the mean cosine of prediction and target: near 1 is too good to be true
        agreement = 1 - loss.detach() / 4
        return Output(loss, pair_monitors(p1_BD, p2_BD) | {"agreement": agreement})

    def after_step(self, progress: float) -> None:
        """Move the target by its EMA; officially at (step - 1) / steps, which never reaches 1."""
        ema_update(self.target, self.online, cosine_between(self.momentum, 1.0, progress))
