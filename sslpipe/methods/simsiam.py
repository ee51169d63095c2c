"""SimSiam: predict one view's projection from the other's; a stop-gradient is all that holds it.

Chen and He 2020, "Exploring simple Siamese representation learning", arXiv:2011.10566;
facebookresearch/simsiam, simsiam/builder.py and main_simsiam.py.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import Batch, BatchSpec
from .method import Output
from .parts.checks import check_axes, positive
from .parts.heads import at_least_fp32, feature_dim, hidden_norm_mlp
from .simclr import monitors


def negative_cosine(p_BD: Tensor, z_BD: Tensor) -> Tensor:
    """Eq. 1, D(p, z), with the stop-gradient of eq. 3 on z; mean over samples."""
    check_axes("negative_cosine", p_BD=p_BD, z_BD=z_BD)
    with torch.autocast(p_BD.device.type, enabled=False):
        p_BD, z_BD = at_least_fp32(p_BD), at_least_fp32(z_BD.detach())
        return -F.cosine_similarity(p_BD, z_BD, dim=1).mean()


@torch.no_grad()
def participation_ratio(z_BD: Tensor) -> Tensor:
    """In how many directions embeddings vary: (sum of variances)^2 / sum of their squares.

    1: along a line, which batch norm without scale at the end of a head hides from the std. Of the
    (B, B) Gram matrix, whose eigenvalues are those variances: no decomposition.
    """
    with torch.autocast(z_BD.device.type, enabled=False):
        z_BD = at_least_fp32(z_BD)
        z_BD = z_BD - z_BD.mean(0)
        gram_BB = z_BD @ z_BD.T
        tiny = torch.finfo(gram_BB.dtype).tiny
        return gram_BB.trace().square() / gram_BB.square().sum().clamp_min(tiny)


class SimSiam(nn.Module):
    """Needs 2 'global' views; the loss is at least -1, which a collapse reaches too."""

    def __init__(
        self,
        encoder: nn.Module,
        spec: BatchSpec,
        *,
        projector: tuple[int, ...] = (2048, 2048, 2048),
        predictor_hidden: int = 512,
    ) -> None:
        super().__init__()
        spec.require("simsiam", views={"global": 2})
        positive(projector=projector, predictor_hidden=predictor_hidden)
        self.encoder = encoder
        sizes = (feature_dim(encoder, "simsiam"), *projector)
        self.projector = hidden_norm_mlp(sizes, last_norm=True)
        self.predictor = hidden_norm_mlp(
            (projector[-1], predictor_hidden, projector[-1]), last_bias=True
        )

    def forward(self, batch: Batch) -> Output:
        """Officially view by view: batch norm has the statistics of one view at a time."""
        views = batch.views["global"][:2]
        z1_BD, z2_BD = (self.projector(self.encoder(view_BCHW)) for view_BCHW in views)
        p1_BD, p2_BD = self.predictor(z1_BD), self.predictor(z2_BD)
        loss = (negative_cosine(p1_BD, z2_BD) + negative_cosine(p2_BD, z1_BD)) / 2
        # the mean cosine of prediction and target: near 1 is too good to be true
        signs = {"agreement": -loss.detach(), "embedding_rank": participation_ratio(z1_BD)}
        return Output(loss, monitors(z1_BD, z2_BD) | signs)

    def fixed_lr_parameters(self) -> Iterable[nn.Parameter]:
        """The predictor keeps its learning rate, to follow the representation (section 4.2)."""
        return self.predictor.parameters()

    def after_step(self, progress: float) -> None:
        """Nothing follows a step."""
