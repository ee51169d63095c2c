"""What DINO, iBOT and DINOv2 share: the teacher's logits as targets, and the loss between views.

SwAV has this loss, too; its codes are the targets. T teacher views, the first of the student's V;
X outputs of this rank, of samples or patches.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checks import check_axes
from .collectives import all_mean
from .heads import at_least_fp32
from .sinkhorn import sinkhorn_knopp


@torch.no_grad()
def centred(logits: Tensor, center_K: Tensor, temperature: float | Tensor) -> Tensor:
    """Centre the teacher's logits, then sharpen them: probabilities (..., K) in at least fp32."""
    with torch.autocast(logits.device.type, enabled=False):
        return F.softmax((at_least_fp32(logits) - center_K) / temperature, dim=-1)


def view_cross_entropy(student_VBK: Tensor, p_TBK: Tensor, *, temperature: float) -> Tensor:
    """Average the cross entropy H(p_t, q_v) of student to teacher over pairs of views v != t."""
    check_axes("view_cross_entropy", student_VBK=student_VBK, p_TBK=p_TBK)
    with torch.autocast(student_VBK.device.type, enabled=False):
        log_q_VBK = F.log_softmax(at_least_fp32(student_VBK) / temperature, dim=-1)
        terms = [
            -(p_TBK[t] * log_q_VBK[v]).sum(-1).mean()
            for t in range(len(p_TBK))
            for v in range(len(log_q_VBK))
            if v != t
        ]
        return torch.stack(terms).mean()


@torch.no_grad()
def move_center(center_K: Tensor, logits_XK: Tensor, *, momentum: float) -> None:
    """Move the centre, in place, towards the mean logits of all ranks; X may differ, and be 0."""
    total = all_mean(torch.cat([logits_XK.sum(0), logits_XK.new_full((1,), len(logits_XK))]))
    sum_K, count = total[:-1], total[-1]
    # written so that the centre stays where no rank has an output
    center_K.add_((sum_K - count * center_K) / count.clamp(min=1e-12), alpha=1.0 - momentum)


def warmed_up(ends: tuple[float, float], warmup: float, progress: Tensor) -> Tensor:
    """Give a teacher's temperature: linear over the first `warmup` of the run, then constant.

    A scalar on the device of `progress`, the share of the run that is done. Officially it takes a
    step per epoch.
    """
    start, end = ends
    return start + (end - start) * (progress / max(warmup, 1e-12)).clamp(max=1.0)


@torch.no_grad()
def entropies(p_TBK: Tensor) -> dict[str, Tensor]:
    """Tell the entropies (nats) of the teacher's outputs and of their mean; equal at a collapse.

    Both near 0: one prototype takes all. Both near ln K: uniform outputs.
    """
    mean_K = p_TBK.mean((0, 1))
    return {
        "teacher_entropy": torch.special.entr(p_TBK).sum(-1).mean(),
        "mean_entropy": torch.special.entr(mean_K).sum(),
    }


class Centring(nn.Module):
    """Logits become targets by a centre, the EMA of the teacher's mean logits over all ranks.

    It moves after it was used (DINO, eq. 4).
    """

    center_K: Tensor

    def __init__(self, prototypes: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center_K", torch.zeros(prototypes))

    def forward(self, logits: Tensor, temperature: Tensor) -> Tensor:
        """(..., K) logits -> (..., K) probabilities without gradient."""
        p = centred(logits, self.center_K, temperature)
        if self.training:  # a loss taken for validation leaves no trace, as with batch norm
            move_center(self.center_K, logits.flatten(0, -2), momentum=self.momentum)
        return p


class Sinkhorn(nn.Module):
    """Logits become targets by three Sinkhorn iterations; all axes but the last are samples."""

    def forward(self, logits: Tensor, temperature: Tensor) -> Tensor:
        """(..., K) logits -> (..., K) probabilities without gradient."""
        p_XK = sinkhorn_knopp(logits.flatten(0, -2), epsilon=temperature)
        return p_XK.view(logits.shape)
