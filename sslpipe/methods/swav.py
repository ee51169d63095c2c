"""SwAV: predict from any crop the cluster code of another crop of the same image.

Caron et al. 2020, "Unsupervised learning of visual features by contrasting cluster assignments",
arXiv:2006.09882; facebookresearch/swav, main_swav.py. A assignment crops (the 2 global ones) here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import Batch, BatchSpec
from ..process import group_ranks
from .method import Method, Output
from .parts.checks import check_axes, not_negative, positive, shares
from .parts.collapse import PROTOTYPE_CAUSES, one_prototype
from .parts.distillation import view_cross_entropy
from .parts.heads import at_least_fp32
from .parts.queues import Queue
from .parts.several_views import CropEmbedder
from .parts.sinkhorn import sinkhorn_knopp

ASSIGN = 2  # crops_for_assign of the official code: the first two


def swav_loss(scores_VBK: Tensor, codes_ABK: Tensor, *, temperature: float) -> Tensor:
    """Eq. 1 and 2 for many crops (section 3.2): cross entropy of codes a and crops v, v != a.

    The first A of the V crops are the assignment crops. The mean over the pairs, as in the official
    code; the paper writes their sum. No gradient reaches the codes.
    """
    check_axes("swav_loss", scores_VBK=scores_VBK, codes_ABK=codes_ABK)
    return view_cross_entropy(scores_VBK, codes_ABK.detach(), temperature=temperature)


class SwAV(Method):
    """Needs 2 'global' views; 'local' ones are optional. Fractions are of the whole run."""

    collapse_signs = (one_prototype,)
    collapse_causes = PROTOTYPE_CAUSES
    # the encoder that is trained is kept; there is no teacher
    encoders = (("student", "embedder.encoder"),)

    def __init__(
        self,
        encoder: nn.Module,
        spec: BatchSpec,
        *,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        iterations: int = 3,
        projector: tuple[int, ...] = (2048, 128),
        prototypes: int = 3000,
        freeze_prototypes: float = 0.00125,
        queue: int = 0,
        queue_start: float = 0.0,
    ) -> None:
        super().__init__()
        positive(temperature=temperature, epsilon=epsilon, iterations=iterations)
        positive(projector=projector, prototypes=prototypes)
        shares(freeze_prototypes=freeze_prototypes, queue_start=queue_start)
        not_negative(queue=queue)
        self.temperature = temperature
        self.epsilon = epsilon
        self.iterations = iterations
        self.freeze_prototypes = freeze_prototypes
        self.queue_start = queue_start
        self.embedder = CropEmbedder("swav", encoder, spec, projector=projector)
        # nn.Linear's own draw, put on the sphere as the first iteration does (resnet50.py)
        start_KD = 2 * torch.rand(prototypes, projector[-1]) - 1
        self.prototypes_KD = nn.Parameter(F.normalize(start_KD))
        self.queue: Queue | None = None
        if queue:
            empty_QD = torch.zeros(queue, ASSIGN * projector[-1])  # an image's crops side by side
            self.queue = Queue(empty_QD, batch=spec.global_size, setting="method.swav.queue")
        self.set_phase(0.0)

    def forward(self, batch: Batch) -> Output:
        """Score all crops against the prototypes, then guess the codes of the global ones."""
        enqueues = self.training and self.queue_fills
        places = None if self.queue is None else self.queue.turn(enqueues=enqueues)
        z_VBD = F.normalize(at_least_fp32(self.embedder(batch.views)), dim=-1)
        # the codes are made of these scores: bf16 steps of 2^-8, divided by 0.05, are 8 % of a code
        with torch.autocast(z_VBD.device.type, enabled=False):
            scores_VBK = F.linear(z_VBD, self.current_prototypes())
        codes_ABK = self.codes(scores_VBK[:ASSIGN])
        loss = swav_loss(scores_VBK, codes_ABK, temperature=self.temperature)
        if self.queue is not None and places is not None and enqueues:
            self.queue.enqueue(z_VBD[:ASSIGN].transpose(0, 1).flatten(1), places)
        return Output(loss, code_monitors(codes_ABK))

    def current_prototypes(self) -> Tensor:
        """Give the prototypes; while they are frozen, with a gradient of zero.

        Not without one, as officially: DDP waits for the gradient of every parameter. What momentum
        and weight decay then still do is along the prototype, which the normalisation undoes.
        """
        if self.frozen:
            return self.prototypes_KD.detach() + 0.0 * self.prototypes_KD
        return self.prototypes_KD

    @torch.no_grad()
    def codes(self, scores_ABK: Tensor) -> Tensor:
        """Balance codes over batch and queue, eq. 3 to 5, each assignment crop for itself."""
        size = scores_ABK.shape[1]
        together_AXK = torch.cat([self.queued_scores(), scores_ABK.detach()], dim=1)
        codes = [
            sinkhorn_knopp(scores_XK, epsilon=self.epsilon, iterations=self.iterations)[-size:]
            for scores_XK in together_AXK
        ]
        return torch.stack(codes)

    def queued_scores(self) -> Tensor:
        """Score this rank's part of the queue by today's prototypes, (A, X, K); X = 0 until full.

        The ranks' parts together are the queue, as the batch is that of all ranks.
        """
        queue, (_, dim) = self.queue, self.prototypes_KD.shape
        if queue is None or not queue.full:
            return self.prototypes_KD.new_zeros(ASSIGN, 0, len(self.prototypes_KD))
        rows_XAD = queue.rows_QD.chunk(group_ranks().size)[group_ranks().rank].view(-1, ASSIGN, dim)
        with torch.autocast(rows_XAD.device.type, enabled=False):
            return F.linear(rows_XAD.transpose(0, 1), self.prototypes_KD)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Put the prototypes back on the sphere; officially at the start of the next iteration.

        main_swav.py:277-281.

        Here, because a forward pass must not write what a backward may still need.
        """
        self.prototypes_KD.copy_(F.normalize(self.prototypes_KD, dim=1))
        self.set_phase(progress)

    def set_phase(self, progress: float) -> None:
        """Say what the next step does, in bools: queues.py tells why the step does not ask."""
        self.progress = progress
        self.frozen = progress < self.freeze_prototypes
        self.queue_fills = progress >= self.queue_start

    def get_extra_state(self) -> float:
        """Save the progress, which decides about queue and freezing, so that a resume is exact."""
        return self.progress

    def set_extra_state(self, state: float) -> None:
        """Restore what `get_extra_state` saved."""
        self.set_phase(state)


def code_monitors(codes_ABK: Tensor) -> dict[str, Tensor]:
    """Tell the entropies (nats) of a code and of the mean code; both near ln K: all are alike."""
    return {
        "code_entropy": torch.special.entr(codes_ABK).sum(-1).mean(),
        "mean_entropy": torch.special.entr(codes_ABK.mean((0, 1))).sum(),
    }
