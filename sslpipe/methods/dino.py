"""DINO: the student's view of any crop agrees with an EMA teacher's view of another global crop.

Caron et al. 2021, "Emerging properties in self-supervised vision transformers", arXiv:2104.14294;
facebookresearch/dino, main_dino.py. T teacher views (the global ones) here.
"""

import torch
from torch import Tensor, nn

from ..batch import Batch, BatchSpec
from .method import Method, Output
from .parts import heads
from .parts.checks import check_axes, positive, shares
from .parts.collapse import PROTOTYPE_CAUSES, one_prototype, teacher_tells_nothing
from .parts.distillation import Centring, centred, entropies, view_cross_entropy, warmed_up
from .parts.patches import whole_patches
from .parts.teachers import cosine_between, ema_update, frozen_copy


def dino_loss(
    student_VBK: Tensor,
    teacher_TBK: Tensor,
    center_K: Tensor,
    *,
    student_temperature: float,
    teacher_temperature: float | Tensor,
) -> Tensor:
    """Eq. 3: cross entropy H(P_t, P_v) over the pairs of views (t, v), v != t.

    The first T of the student's V views are the teacher's. No gradient reaches the teacher.
    The mean over the pairs, as in the official code; the paper writes their sum.
    """
    check_axes("dino_loss", student_VBK=student_VBK, teacher_TBK=teacher_TBK, center_K=center_K)
    p_TBK = centred(teacher_TBK, center_K, teacher_temperature)
    return view_cross_entropy(student_VBK, p_TBK, temperature=student_temperature)


class DINO(Method):
    """Needs 2 'global' views; 'local' ones are optional. Fractions are of the whole run."""

    collapse_signs = (one_prototype, teacher_tells_nothing)
    collapse_causes = PROTOTYPE_CAUSES
    progress: Tensor
    # the TEACHER's encoder is kept: the paper evaluates and releases it (eval_knn.py)
    encoders = (("teacher", "teacher.encoder"), ("student", "student.encoder"))

    def __init__(
        self,
        encoder: nn.Module,
        spec: BatchSpec,
        *,
        prototypes: int = 65536,
        hidden: int = 2048,
        bottleneck: int = 256,
        student_temperature: float = 0.1,
        teacher_temperature: tuple[float, float] = (0.04, 0.07),
        teacher_warmup: float = 0.3,
        momentum: float = 0.996,
        center_momentum: float = 0.9,
        norm_last_layer: bool = True,
        freeze_last_layer: float = 0.01,
    ) -> None:
        super().__init__()
        spec.require("dino", views={"global": 2})
        positive(student_temperature=student_temperature, teacher_temperature=teacher_temperature)
        positive(prototypes=prototypes, hidden=hidden, bottleneck=bottleneck)
        shares(teacher_warmup=teacher_warmup, freeze_last_layer=freeze_last_layer)
        shares(momentum=momentum, center_momentum=center_momentum)
        self.student_temperature = student_temperature
        self.teacher_temperature = teacher_temperature
        self.teacher_warmup = teacher_warmup
        self.momentum = momentum
        self.freeze_last_layer = freeze_last_layer
        self.groups = [group for group in ("global", "local") if group in spec.views]
        whole_patches("dino", encoder, spec, self.groups)
        sizes = (heads.feature_dim(encoder, "dino"), hidden, hidden, bottleneck)
        head = heads.PrototypeHead(sizes, prototypes, learn_norm=not norm_last_layer)
        self.student = heads.Branch(encoder, head)
        self.teacher = frozen_copy(self.student)
        self.center = Centring(prototypes, center_momentum)
        self.register_buffer("progress", torch.zeros(()))  # saved, so that a resume is exact

    def forward(self, batch: Batch) -> Output:
        """Show the teacher the global views, the student all; the centre moves after its use."""
        groups = [batch.views[group] for group in self.groups]
        with torch.no_grad():
            p_TBK = self.center(self.teacher(groups[:1]), self.temperature())
        loss = view_cross_entropy(self.student(groups), p_TBK, temperature=self.student_temperature)
        return Output(loss, entropies(p_TBK))

    def temperature(self) -> Tensor:
        """Give the teacher's temperature, which rises over `teacher_warmup` (30 of 100 epochs)."""
        return warmed_up(self.teacher_temperature, self.teacher_warmup, self.progress)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Hold the last layer while it is frozen, then move the teacher by its EMA."""
        if progress <= self.freeze_last_layer:
            self.hold_last_layer()
        # officially the momentum of step i is taken at i / T, which never reaches 1: here it does
        ema_update(self.teacher, self.student, cosine_between(self.momentum, 1.0, progress))
        self.progress.fill_(progress)

    def hold_last_layer(self) -> None:
        """Undo the optimizer's step on the prototypes, from the teacher's equal copy.

        Officially their gradients are set to None before the step. A method cannot do that under
        anyone's trainer: frozen or unused parameters break DDP, and zeros instead of None still
        decay the weights. Undoing is exact for the weights under every optimizer; only its
        moments start warm, with the gradients of the last frozen steps.
        """
        self.student.head.last.load_state_dict(self.teacher.head.last.state_dict())
