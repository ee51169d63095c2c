"""NNCLR: SimCLR whose positive is the nearest neighbour, in a queue, of the other view.

Dwibedi et al. 2021, "With a little help from my friends: nearest-neighbor contrastive learning of
visual representations", arXiv:2104.14548. The authors published no code; the pseudo-code is theirs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import Batch, BatchSpec
from ..encoders.monitors import spread_over_images
from .method import Method, Output
from .parts.checks import check_axes, positive
from .parts.collapse import CONTRASTIVE_CAUSES, embeddings_alike
from .parts.collectives import gather, own_places
from .parts.heads import at_least_fp32, batch_norm_mlp, feature_dim, hidden_norm_mlp
from .parts.queues import Queue, random_rows


def nnclr_loss(neighbours_BD: Tensor, predictions_BD: Tensor, *, temperature: float) -> Tensor:
    """Eq. 3: cross entropy of each neighbour to its own prediction among those of the global batch.

    Both are L2-normalised inside. No gradient reaches the neighbours. The mean over ranks is the
    loss of the joined batch, and so are the gradients.
    """
    check_axes("nnclr_loss", neighbours_BD=neighbours_BD, predictions_BD=predictions_BD)
    with torch.autocast(predictions_BD.device.type, enabled=False):
        n_BD = F.normalize(at_least_fp32(neighbours_BD.detach()), dim=1)
        # with gradient: a prediction is a negative of the samples of other ranks, too
        p_YD = gather(F.normalize(at_least_fp32(predictions_BD), dim=1))
        own_B = own_places(n_BD)
        return F.cross_entropy(n_BD @ p_YD.T / temperature, own_B)


@torch.no_grad()
def nearest_neighbours(z_BD: Tensor, queue_QD: Tensor) -> Tensor:
    """Find the most similar row of the queue (section 3.2): its index, (B,) int64.

    Of vectors of unit length it is the nearest one, which the paper's NN(z, Q) asks for.
    """
    with torch.autocast(z_BD.device.type, enabled=False):  # bf16 cannot tell near ones apart
        return (z_BD @ queue_QD.T.to(z_BD.dtype)).argmax(1)


class NNCLR(Method):
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
        projector: tuple[int, ...] = (2048, 2048, 256),
        predictor_hidden: int = 4096,
        queue: int = 98304,
    ) -> None:
        super().__init__()
        spec.require("nnclr", views={"global": 2})
        positive(temperature=temperature, projector=projector)
        positive(predictor_hidden=predictor_hidden, queue=queue)
        dim = projector[-1]
        self.temperature = temperature
        self.encoder = encoder
        self.projector = batch_norm_mlp((feature_dim(encoder, "nnclr"), *projector))
        self.predictor = hidden_norm_mlp(
            (dim, predictor_hidden, dim), hidden_bias=True, last_bias=True
        )
        rows_QD = random_rows(queue, dim)  # some neighbours are noise until it is filled once
        self.queue = Queue(rows_QD, batch=spec.global_size, setting="method.nnclr.queue")

    def forward(self, batch: Batch) -> Output:
        """Average both directions; then the queue takes the first view, as in the pseudo-code."""
        places_B = self.queue.turn(enqueues=self.training)
        views_VBCHW = batch.views["global"][:2]
        z_XD = self.projector(self.encoder(views_VBCHW.flatten(0, 1)))
        p1_BD, p2_BD = self.predictor(z_XD).chunk(2)
        z1_BD, z2_BD = F.normalize(at_least_fp32(z_XD.detach()), dim=1).chunk(2)
        rows_QD = self.queue.rows_QD
        near1_B, near2_B = (nearest_neighbours(z, rows_QD) for z in (z1_BD, z2_BD))
        loss = (
            nnclr_loss(rows_QD[near1_B], p2_BD, temperature=self.temperature)
            + nnclr_loss(rows_QD[near2_B], p1_BD, temperature=self.temperature)
        ) / 2
        if self.training:
            self.queue.enqueue(z1_BD, places_B)
        # the share of images whose two views have the same neighbour: it grows as classes form
        agree = (near1_B == near2_B).float().mean()
        return Output(loss, {"neighbours_agree": agree, "embedding_std": spread_over_images(z1_BD)})
