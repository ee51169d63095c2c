"""MSN: a view with dropped patches has the soft cluster assignment of the whole other view.

Assran et al. 2022, "Masked siamese networks for label-efficient learning", arXiv:2204.07141;
facebookresearch/msn, src/losses.py and src/msn_train.py. A anchor views of each sample here.
"""

import math
from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import Batch, BatchSpec
from ..encoders.patches import visible_first
from ..encoders.protocols import PatchEncoder
from .method import Method, Output
from .parts.checks import check_axes, not_negative, positive, shares
from .parts.collapse import PROTOTYPE_CAUSES, one_prototype, teacher_tells_nothing
from .parts.collectives import gather
from .parts.distillation import entropies
from .parts.heads import at_least_fp32, feature_dim, hidden_norm_mlp, trunc_normal
from .parts.patches import hidden_patches, patch_mask, whole_patches
from .parts.sinkhorn import sinkhorn_knopp
from .parts.teachers import ema_update, frozen_copy, linear_between


def log_assignments(z: Tensor, prototypes_KD: Tensor, temperature: float) -> Tensor:
    """Assign to prototypes by the softmax of cosines, eq. 1 in logarithms: (..., K)."""
    cosines = F.linear(F.normalize(z, dim=-1), F.normalize(at_least_fp32(prototypes_KD), dim=1))
    return F.log_softmax(cosines / temperature, dim=-1)


@torch.no_grad()
def msn_targets(log_p_BK: Tensor, *, sharpening: float) -> Tensor:
    """Sharpen, p^(1/T) / sum, and THEN balance by Sinkhorn over the global batch: (B, K)."""
    return sinkhorn_knopp(F.log_softmax(log_p_BK / sharpening, dim=1))


def me_max(log_p_ABK: Tensor) -> Tensor:
    """The regulariser of eq. 2 plus ln K: 0 when all prototypes are used alike, ln K by one.

    The mean prediction is that of the anchors of all ranks.
    """
    check_axes("me_max", log_p_ABK=log_p_ABK)
    mean_K = gather(log_p_ABK.exp().mean((0, 1))[None]).mean(0)
    used: Tensor = torch.special.entr(mean_K).sum()
    return math.log(len(mean_K)) - used


def msn_loss(
    anchors_ABD: Tensor, targets_BD: Tensor, prototypes_KD: Tensor, *, temperature: float = 0.1,
    sharpening: float = 0.25, me_max_weight: float = 1.0,
) -> Tensor:  # fmt: skip
    """Eq. 2: cross entropy of the anchors to their sample's target, and the regulariser.

    No gradient reaches the targets, nor the prototypes through them.
    """
    check_axes("msn", anchors_ABD=anchors_ABD, targets_BD=targets_BD, prototypes_KD=prototypes_KD)
    with torch.autocast(anchors_ABD.device.type, enabled=False):
        anchors_ABD, targets_BD = at_least_fp32(anchors_ABD), at_least_fp32(targets_BD)
        log_target_BK = log_assignments(targets_BD.detach(), prototypes_KD.detach(), temperature)
        q_BK = msn_targets(log_target_BK, sharpening=sharpening)
        log_p_ABK = log_assignments(anchors_ABD, prototypes_KD, temperature)
        return -(q_BK * log_p_ABK).sum(-1).mean() + me_max_weight * me_max(log_p_ABK)


class TokenBranch(nn.Module):
    """A ViT with a head on its class token, as anchors and targets each have one."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, images_BCHW: Tensor, visible_BS: Tensor | None = None) -> Tensor:
        """Embed (B, D); each size of crops has BN statistics of its own, as officially."""
        tokens_BSD = cast(PatchEncoder, self.encoder).tokens(images_BCHW, visible_BS)
        return cast(Tensor, self.head(tokens_BSD[:, 0]))


class MSN(Method):
    """Needs 1 'target' and 1 'anchor' view and masks 'drop' of the anchor; 'focal' is optional."""

    collapse_signs = (one_prototype, teacher_tells_nothing)
    collapse_causes = PROTOTYPE_CAUSES
    # the TEACHER's encoder is kept: the authors evaluate the target network
    encoders = (("teacher", "teacher.encoder"), ("student", "student.encoder"))

    def __init__(
        self,
        encoder: nn.Module,
        spec: BatchSpec,
        *,
        temperature: float = 0.1,
        sharpening: float = 0.25,
        me_max_weight: float = 1.0,
        projector: tuple[int, ...] = (2048, 2048, 256),
        prototypes: int = 1024,
        momentum: float = 0.996,
    ) -> None:
        super().__init__()
        spec.require("msn", views={"target": 1, "anchor": 1})
        mask = patch_mask("msn", encoder, spec, "drop", view="anchor")
        positive(temperature=temperature, sharpening=sharpening)
        positive(projector=projector, prototypes=prototypes)
        not_negative(me_max_weight=me_max_weight)
        shares(momentum=momentum)
        self.num_visible = mask.patches - hidden_patches("msn", mask, "drop")
        self.temperature = temperature
        self.sharpening = sharpening
        self.me_max_weight = me_max_weight
        self.momentum = momentum
        self.focal = "focal" in spec.views
        whole_patches("msn", encoder, spec, {"target", "anchor", "focal"} & set(spec.views))
        sizes = (feature_dim(encoder, "msn"), *projector)
        head = hidden_norm_mlp(sizes, activation=nn.GELU, hidden_bias=True, last_bias=True)
        self.student = TokenBranch(encoder, head.apply(trunc_normal))  # init_model
        self.teacher = frozen_copy(self.student)
        # DDP averages their gradient over ranks; officially it is SUMMED (msn_train.py:367)
        start_KD = (2 * torch.rand(prototypes, projector[-1]) - 1) * projector[-1] ** -0.5
        self.prototypes_KD = nn.Parameter(start_KD)

    def forward(self, batch: Batch) -> Output:
        """The teacher sees the target, the student the rest of the anchor and the focal crops."""
        with torch.no_grad():
            targets_BD = self.teacher(batch.views["target"][0])
        visible_BS = visible_first(batch.masks["drop"][0])[:, : self.num_visible]
        anchors = [self.student(batch.views["anchor"][0], visible_BS)]
        if self.focal:
            anchors.append(self.student(batch.views["focal"].flatten(0, 1)))
        anchors_ABD = torch.cat(anchors).view(-1, *targets_BD.shape)
        loss = msn_loss(
            anchors_ABD, targets_BD, self.prototypes_KD, temperature=self.temperature,
            sharpening=self.sharpening, me_max_weight=self.me_max_weight,
        )  # fmt: skip
        with torch.no_grad():
            log_p_BK = log_assignments(targets_BD, self.prototypes_KD, self.temperature)
        return Output(loss, entropies(log_p_BK[None].softmax(-1)))

    def undecayed_parameters(self) -> Iterable[nn.Parameter]:
        """Spare the prototypes: init_opt gives them a group without decay."""
        yield self.prototypes_KD

    def clipped_together(self) -> Iterable[Iterable[nn.Parameter]]:
        """Clip the encoder with its head; the gradient of the prototypes is not clipped."""
        yield self.student.parameters()

    def after_step(self, progress: float) -> None:
        """Move the teacher. The official schedule is stretched: it ends at 4/5 of the way to 1."""
        ema_update(self.teacher, self.student, linear_between(self.momentum, 1.0, progress / 1.25))
