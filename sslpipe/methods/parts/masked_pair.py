"""Student and teacher of iBOT and DINOv2: the student sees masked views, the teacher whole ones.

R views of this rank, all 'global' ones of all samples; X patches hidden in them here.
"""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ...batch import Batch, BatchSpec
from ...encoders.protocols import PatchEncoder
from ...errors import ContractError
from .checks import positive, shares
from .heads import PrototypeHead, feature_dim
from .patches import patch_mask, whole_patches
from .teachers import cosine_between, ema_update, frozen_copy

MASK = "blocks"  # mask m belongs to 'global' view m


def check_masked_views(method: str, encoder: nn.Module, spec: BatchSpec) -> None:
    """Check that there are 2 'global' views with a mask for each.

    Raises:
        ContractError: views, mask or encoder do not fit each other.
    """
    spec.require(method, views={"global": 2}, masks=(MASK,))
    mask, views = patch_mask(method, encoder, spec, MASK), spec.views["global"].count
    whole_patches(method, encoder, spec, {"global", "local"} & set(spec.views))
    if mask.count != views:
        raise ContractError(
            f"{method} needs a mask for each of the {views} 'global' views; this recipe makes "
            f"{mask.count}. Set masks.{MASK}.count to {views}"
        )


def hidden_index(hidden_RN: Tensor, count: int) -> Tensor:
    """Number the hidden patches among all R * N, ascending: (count,) int64.

    A stable sort and not boolean indexing, whose size would have to come back to the host.
    """
    return hidden_RN.flatten().logical_not().to(torch.uint8).argsort(stable=True)[:count]


class Seen(NamedTuple):
    """What a branch makes of a batch."""

    features_VBD: Tensor  # class tokens of all views before the head
    cls_VBK: Tensor
    patches_XK: Tensor  # in the order of `hidden_index`


class MaskedBranch(nn.Module):
    """A ViT with heads for class tokens and patches, which may be one and the same."""

    def __init__(self, encoder: nn.Module, head: PrototypeHead, patch_head: PrototypeHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.patch_head = patch_head

    def forward(
        self,
        groups: list[Tensor],
        index_X: Tensor,
        *,
        hidden_RN: Tensor | None = None,
        mask_token_D: Tensor | None = None,
    ) -> Seen:
        """Encode groups of (V, B, C, H, W), one pass each; `index_X` counts the first's patches.

        With `hidden_RN`, `mask_token_D` stands for these patches of the first group.
        """
        tokens = cast(PatchEncoder, self.encoder).tokens
        first, *rest = [group.flatten(0, 1) for group in groups]
        first_RTD = tokens(first, hidden_BN=hidden_RN, mask_token_D=mask_token_D)
        features = torch.cat([first_RTD[:, 0], *(tokens(images)[:, 0] for images in rest)])
        patches_XD = first_RTD[:, 1:].flatten(0, 1).index_select(0, index_X)
        logits = self.head(features)
        size = groups[0].shape[1]
        return Seen(
            features.view(-1, size, features.shape[1]),
            logits.view(-1, size, logits.shape[1]),
            self.patch_head(patches_XD),
        )


class MaskedPair(nn.Module):
    """The student, its mask token, and the teacher that follows it; 'local' views are optional."""

    progress: Tensor

    def __init__(
        self, student: MaskedBranch, spec: BatchSpec, *, momentum: float, freeze_last_layer: float
    ) -> None:
        super().__init__()
        shares(momentum=momentum, freeze_last_layer=freeze_last_layer)
        self.groups = [group for group in ("global", "local") if group in spec.views]
        self.momentum = momentum
        self.freeze_last_layer = freeze_last_layer
        self.student = student
        self.teacher = frozen_copy(student)
        # 2-D, as in both official codes, where it is therefore decayed
        self.mask_token_1D = nn.Parameter(torch.zeros(1, feature_dim(student.encoder, "masks")))
        self.register_buffer("progress", torch.zeros(()))  # saved, so that a resume is exact

    def forward(self, batch: Batch) -> tuple[Seen, Seen]:
        """Show the student all views, the 'global' ones masked; the teacher these alone, whole."""
        groups = [batch.views[group] for group in self.groups]
        hidden_RN = batch.masks[MASK].flatten(0, 1)
        index_X = hidden_index(hidden_RN, int(batch.hidden[MASK].sum()))  # counted on the host
        with torch.no_grad():
            teacher = self.teacher(groups[:1], index_X)
        mask_token_D = self.mask_token_1D[0]
        student = self.student(groups, index_X, hidden_RN=hidden_RN, mask_token_D=mask_token_D)
        return student, teacher

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Hold the last layers while they are frozen (as in DINO), then move the teacher."""
        if progress <= self.freeze_last_layer:
            student, teacher = self.student, self.teacher
            student.head.last.load_state_dict(teacher.head.last.state_dict())
            student.patch_head.last.load_state_dict(teacher.patch_head.last.state_dict())
        ema_update(self.teacher, self.student, cosine_between(self.momentum, 1.0, progress))
        self.progress.fill_(progress)


def prototype_head(
    encoder: nn.Module, prototypes: int, hidden: int, bottleneck: int, *, learn_norm: bool
) -> PrototypeHead:
    """Make DINO's head for the tokens of `encoder`."""
    positive(prototypes=prototypes, hidden=hidden, bottleneck=bottleneck)
    sizes = (feature_dim(encoder, "masks"), hidden, hidden, bottleneck)
    return PrototypeHead(sizes, prototypes, learn_norm=learn_norm)
