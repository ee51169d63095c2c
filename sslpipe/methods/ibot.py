"""iBOT: DINO on class tokens, and the same teacher's view of the patches hidden from the student.

Zhou et al. 2021, "iBOT: image BERT pre-training with online tokenizer", arXiv:2111.07832;
bytedance/ibot, main_ibot.py. R masked views of this rank, X patches hidden in them here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import Batch, BatchSpec
from .method import Method, Output
from .parts.checks import check_axes, not_negative, positive, shares
from .parts.collapse import PROTOTYPE_CAUSES, one_prototype, teacher_tells_nothing
from .parts.distillation import Centring, entropies, view_cross_entropy, warmed_up
from .parts.heads import at_least_fp32
from .parts.masked_pair import (
    MASK,
    MaskedBranch,
    MaskedPair,
    check_masked_views,
    hidden_index,
    prototype_head,
)


def ibot_loss(student_XK: Tensor, p_XK: Tensor, hidden_RN: Tensor, *, temperature: float) -> Tensor:
    """Eq. 3, L_MIM: cross entropy of hidden patches to the teacher's at the same place.

    Mean over the hidden patches of a view, then over views; one without hidden patches counts as
    0. X = all that `hidden_RN` hides, ascending; `p_XK` are probabilities without gradient.
    """
    check_axes("ibot_loss", student_XK=student_XK, p_XK=p_XK, hidden_RN=hidden_RN)
    with torch.autocast(student_XK.device.type, enabled=False):
        log_q_XK = F.log_softmax(at_least_fp32(student_XK) / temperature, dim=-1)
        cost_X = -(p_XK * log_q_XK).sum(-1)
        view_X = hidden_index(hidden_RN, len(cost_X)) // hidden_RN.shape[1]
        weight_R = hidden_RN.sum(1).clamp(min=1).to(cost_X.dtype).reciprocal()
        return (cost_X * weight_R.index_select(0, view_X)).sum() / len(hidden_RN)


class IBOT(Method):
    """Needs 2 'global' views and a mask 'blocks' for each; 'local' views are optional.

    One head for class tokens and patches (`--shared_head true`, the README's commands). Fractions
    are of the whole run.
    """

    collapse_signs = (one_prototype, teacher_tells_nothing)
    collapse_causes = PROTOTYPE_CAUSES
    # the TEACHER's encoder is kept: the paper evaluates and releases it
    encoders = (("teacher", "pair.teacher.encoder"), ("student", "pair.student.encoder"))

    def __init__(
        self,
        encoder: nn.Module,
        spec: BatchSpec,
        *,
        prototypes: int = 8192,
        hidden: int = 2048,
        bottleneck: int = 256,
        student_temperature: float = 0.1,
        teacher_temperature: tuple[float, float] = (0.04, 0.07),
        patch_temperature: tuple[float, float] = (0.04, 0.07),
        teacher_warmup: float = 0.0375,
        cls_weight: float = 1.0,
        patch_weight: float = 1.0,
        momentum: float = 0.996,
        center_momentum: float = 0.9,
        norm_last_layer: bool = True,
        freeze_last_layer: float = 0.00125,
    ) -> None:
        super().__init__()
        check_masked_views("ibot", encoder, spec)
        positive(student_temperature=student_temperature, teacher_temperature=teacher_temperature)
        positive(patch_temperature=patch_temperature)
        not_negative(cls_weight=cls_weight, patch_weight=patch_weight)
        shares(teacher_warmup=teacher_warmup, center_momentum=center_momentum)
        self.student_temperature = student_temperature
        self.teacher_temperature = teacher_temperature
        self.patch_temperature = patch_temperature
        self.teacher_warmup = teacher_warmup
        self.cls_weight = cls_weight
        self.patch_weight = patch_weight
        head = prototype_head(
            encoder, prototypes, hidden, bottleneck, learn_norm=not norm_last_layer
        )
        self.pair = MaskedPair(
            MaskedBranch(encoder, head, head), spec, momentum=momentum,
            freeze_last_layer=freeze_last_layer,
        )  # fmt: skip
        self.center = Centring(prototypes, center_momentum)
        # Officially the mean over ALL patches of the teacher; here over the hidden ones, whose
        # places are random, so that its head runs on a sixth of the patches. So does DINOv2.
        self.patch_center = Centring(prototypes, center_momentum)

    def forward(self, batch: Batch) -> Output:
        """Compare class tokens across views, hidden patches within one; each has its own centre."""
        student, teacher = self.pair(batch)
        cls_temperature, patch_temperature = (
            warmed_up(ends, self.teacher_warmup, self.pair.progress)
            for ends in (self.teacher_temperature, self.patch_temperature)
        )
        p_TBK = self.center(teacher.cls_VBK, cls_temperature)
        cls_loss = view_cross_entropy(student.cls_VBK, p_TBK, temperature=self.student_temperature)
        patch_loss = ibot_loss(
            student.patches_XK,
            self.patch_center(teacher.patches_XK, patch_temperature),
            batch.masks[MASK].flatten(0, 1),
            temperature=self.student_temperature,
        )
        metrics = {"cls_loss": cls_loss.detach(), "patch_loss": patch_loss.detach()}
        loss = self.cls_weight * cls_loss + self.patch_weight * patch_loss
        return Output(loss, metrics | entropies(p_TBK))

    def after_step(self, progress: float) -> None:
        """Hold the last layer while it is frozen, then move the teacher by its EMA."""
        self.pair.after_step(progress)
