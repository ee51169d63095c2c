"""DINOv2: iBOT's two losses, KoLeo, and prototypes balanced by a centre or by Sinkhorn-Knopp.

Oquab et al. 2023, "DINOv2: learning robust visual features without supervision",
arXiv:2304.07193, section 4; facebookresearch/dinov2, train/ssl_meta_arch.py.
"""

from collections.abc import Iterator
from functools import partial
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import Batch, BatchSpec
from ..errors import ContractError
from .ibot import ibot_loss
from .method import Method, Output
from .parts.checks import check_axes, not_negative, positive, shares
from .parts.collapse import PROTOTYPE_CAUSES, one_prototype, teacher_tells_nothing
from .parts.distillation import Centring, Sinkhorn, entropies, view_cross_entropy, warmed_up
from .parts.heads import at_least_fp32
from .parts.masked_pair import MASK, MaskedBranch, MaskedPair, check_masked_views, prototype_head


def koleo_loss(features_BD: Tensor, *, eps: float = 1e-8) -> Tensor:
    """KoLeo is minus the mean log distance to the nearest neighbour, on the unit sphere.

    So features of different images keep their distance. Neighbours are sought among this rank's B
    samples, 2 or more; nothing is gathered. Sablayrolles et al. 2019, "Spreading vectors for
    similarity search", arXiv:1806.03198, section 3.1; facebookresearch/dinov2, koleo_loss.py.
    """
    check_axes("koleo_loss", features_BD=features_BD)
    with torch.autocast(features_BD.device.type, enabled=False):
        x_BD = F.normalize(at_least_fp32(features_BD), dim=1, eps=eps)
        cosines_BB = (x_BD @ x_BD.T).detach()
        own_BB = torch.eye(len(cosines_BB), dtype=torch.bool, device=cosines_BB.device)
        # not in place: torch.compile refuses that on a part of a batch
        nearest_B = cosines_BB.masked_fill(own_BB, -2.0).argmax(1)
        distance_B = F.pairwise_distance(x_BD, x_BD.index_select(0, nearest_B), eps=eps)
        return -(distance_B + eps).log().mean()


class DINOv2(Method):
    """Needs 2 'global' views and a mask 'blocks' for each; 'local' views are optional.

    heads "shared": one for class tokens and patches (ViT-L/16 on ImageNet-1k); "separate": two
    (the released ViT-L/14 and ViT-g/14). Fractions are of the whole run.
    """

    collapse_signs = (one_prototype, teacher_tells_nothing)
    collapse_causes = PROTOTYPE_CAUSES
    # the TEACHER's encoder is kept: the authors evaluate and release it
    encoders = (("teacher", "pair.teacher.encoder"), ("student", "pair.student.encoder"))

    def __init__(
        self,
        encoder: nn.Module,
        spec: BatchSpec,
        *,
        heads: Literal["shared", "separate"] = "shared",
        centering: Literal["centering", "sinkhorn"] = "centering",
        prototypes: int = 65536,
        hidden: int = 2048,
        bottleneck: int = 256,
        student_temperature: float = 0.1,
        teacher_temperature: tuple[float, float] = (0.04, 0.07),
        teacher_warmup: float = 0.3,
        cls_weight: float = 1.0,
        patch_weight: float = 1.0,
        koleo_weight: float = 0.1,
        momentum: float = 0.992,
        center_momentum: float = 0.9,
        norm_last_layer: bool = False,
        freeze_last_layer: float = 0.01,
    ) -> None:
        super().__init__()
        check_masked_views("dinov2", encoder, spec)
        positive(student_temperature=student_temperature, teacher_temperature=teacher_temperature)
        not_negative(cls_weight=cls_weight, patch_weight=patch_weight, koleo_weight=koleo_weight)
        shares(teacher_warmup=teacher_warmup, center_momentum=center_momentum)
        check_koleo(koleo_weight, spec)
        self.student_temperature = student_temperature
        self.teacher_temperature = teacher_temperature
        self.teacher_warmup = teacher_warmup
        self.weights = (cls_weight, patch_weight, koleo_weight)
        # dino_head.py sets the prototypes' norms to 1 and, unlike DINO's, lets them learn
        new_head = partial(
            prototype_head, encoder, prototypes, hidden, bottleneck, learn_norm=not norm_last_layer
        )
        head = new_head()
        branch = MaskedBranch(encoder, head, new_head() if heads == "separate" else head)
        self.pair = MaskedPair(branch, spec, momentum=momentum, freeze_last_layer=freeze_last_layer)
        self.cls_targets = targets(centering, prototypes, center_momentum)
        self.patch_targets = targets(centering, prototypes, center_momentum)

    def forward(self, batch: Batch) -> Output:
        """Compare class tokens across views, hidden patches within one; KoLeo is per global view.

        The official sums over pairs, divided by 2 + 2 * locals, are the mean over pairs v != t
        (without locals it divides by 3, not 2: not copied).
        """
        student, teacher = self.pair(batch)
        temperature = warmed_up(self.teacher_temperature, self.teacher_warmup, self.pair.progress)
        p_TBK = self.cls_targets(teacher.cls_VBK, temperature)
        p_XK = self.patch_targets(teacher.patches_XK, temperature)
        hidden_RN = batch.masks[MASK].flatten(0, 1)
        features = student.features_VBD[: len(p_TBK)]  # of global views, before the head
        terms = {
            "cls_loss": view_cross_entropy(
                student.cls_VBK, p_TBK, temperature=self.student_temperature
            ),
            "patch_loss": ibot_loss(
                student.patches_XK, p_XK, hidden_RN, temperature=self.student_temperature
            ),
            "koleo_loss": torch.stack([koleo_loss(view_BD) for view_BD in features]).sum(),
        }
        loss = sum(w * term for w, term in zip(self.weights, terms.values(), strict=True))
        metrics = {name: term.detach() for name, term in terms.items()}
        return Output(cast(Tensor, loss), metrics | entropies(p_TBK))

    def after_step(self, progress: float) -> None:
        """Hold the last layers while they are frozen, then move the teacher by its EMA."""
        self.pair.after_step(progress)

    def clipped_together(self) -> Iterator[list[nn.Parameter]]:
        """Clip the backbone with its mask token, and each head: `student.values()` of train.py."""
        student = self.pair.student
        yield [*student.encoder.parameters(), self.pair.mask_token_1D]
        for head in dict.fromkeys((student.head, student.patch_head)):  # may be the same
            yield list(head.parameters())


def check_koleo(weight: float, spec: BatchSpec) -> None:
    """Raise a ContractError if a sample has no neighbour on its rank."""
    if weight and spec.size < 2:
        raise ContractError(
            f"dinov2: KoLeo needs 2 samples per rank, not {spec.size}; "
            "raise stream.batch_size, or set koleo_weight to 0"
        )


def targets(
    centering: Literal["centering", "sinkhorn"], prototypes: int, momentum: float
) -> nn.Module:
    """Make what turns the teacher's logits into targets."""
    return Sinkhorn() if centering == "sinkhorn" else Centring(prototypes, momentum)
