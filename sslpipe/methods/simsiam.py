"""SimSiam: predict one view's projection from the other's; a stop-gradient is all that holds it.

Chen and He 2020, "Exploring simple Siamese representation learning", arXiv:2011.10566;
facebookresearch/simsiam, simsiam/builder.py and main_simsiam.py.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import Batch, BatchSpec
from .method import Method, Numbers, Output, Sign
from .parts.checks import check_axes, positive
from .parts.collapse import PREDICTOR_CAUSES, embeddings_alike, views_agree
from .parts.heads import at_least_fp32, feature_dim, hidden_norm_mlp
from .simclr import pair_monitors

# 1 = along a line; collapsed 1.05 to 1.25, whole 2.1 and more. It is no sign for BYOL, whose
# predictions begin at 1.1
DIRECTIONS = 1.3


def negative_cosine(p_BD: Tensor, z_BD: Tensor) -> Tensor:
    """Eq. 1, D(p, z), with the stop-gradient of eq. 3 on z; mean over samples."""
    check_axes("negative_cosine", p_BD=p_BD, z_BD=z_BD)
    with torch.autocast(p_BD.device.type, enabled=False):
        p_BD, z_BD = at_least_fp32(p_BD), at_least_fp32(z_BD.detach())
        return -F.cosine_similarity(p_BD, z_BD, dim=1).mean()


@torch.no_grad()
def participation_ratio(z_BD: Tensor) -> Tensor:
    """Tell in how many directions embeddings vary: (sum of variances)^2 / sum of their squares.

    1: along a line, which batch norm without scale at the end of a head hides from the std. Of the
    (B, B) Gram matrix, whose eigenvalues are those variances: no decomposition.
    """
    with torch.autocast(z_BD.device.type, enabled=False):
        z_BD = at_least_fp32(z_BD)
        z_BD = z_BD - z_BD.mean(0)
        gram_BB = z_BD @ z_BD.T
        tiny = torch.finfo(gram_BB.dtype).tiny
        return gram_BB.trace().square() / gram_BB.square().sum().clamp_min(tiny)


def along_a_line(row: Numbers, _: Numbers) -> Sign | None:
    """Compare the directions in which embeddings vary with those of a line, 1."""
    if "embedding_rank" not in row:
        return None
    said = (
        f"collapse: the embeddings vary along one direction only (embedding_rank = "
        f"{row['embedding_rank']:.2f}, below {DIRECTIONS})"
    )
    return Sign("embedding_rank", row["embedding_rank"] < DIRECTIONS, said)


class SimSiam(Method):
    """Needs 2 'global' views; the loss is at least -1, which a collapse reaches too."""

    encoder: nn.Module
    collapse_signs = (embeddings_alike, views_agree, along_a_line)
    collapse_causes = PREDICTOR_CAUSES

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
        """Encode view by view, as officially: batch norm has the statistics of one view."""
        views = batch.views["global"][:2]
        z1_BD, z2_BD = (self.projector(self.encoder(view_BCHW)) for view_BCHW in views)
        p1_BD, p2_BD = self.predictor(z1_BD), self.predictor(z2_BD)
        loss = (negative_cosine(p1_BD, z2_BD) + negative_cosine(p2_BD, z1_BD)) / 2
        # the mean cosine of prediction and target: near 1 is too good to be true
        signs = {"agreement": -loss.detach(), "embedding_rank": participation_ratio(z1_BD)}
        return Output(loss, pair_monitors(z1_BD, z2_BD) | signs)

    def fixed_lr_parameters(self) -> Iterable[nn.Parameter]:
        """The predictor keeps its learning rate, to follow the representation (section 4.2)."""
        return self.predictor.parameters()
