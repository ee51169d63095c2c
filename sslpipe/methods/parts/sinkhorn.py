"""Sinkhorn-Knopp: assignments of samples to prototypes that use all prototypes about equally.

Cuturi 2013, arXiv:1306.0895; as used by SwAV (arXiv:2006.09882, eq. 3 to 5), MSN and DINOv2.
X samples of this rank here.
"""

import torch
from torch import Tensor

from .collectives import gather
from .heads import at_least_fp32


@torch.no_grad()
def sinkhorn_knopp(
    scores_XK: Tensor, *, epsilon: float | Tensor = 1.0, iterations: int = 3
) -> Tensor:
    """Assign softly, (X, K) in at least fp32, without gradient; each sample's shares sum to 1.

    Starts from exp(scores / epsilon). An iteration divides each prototype by its sum over the
    samples of ALL ranks, then each sample by its own; ranks may hold different numbers of samples.
    The samples come last, so that prototypes are used only nearly equally.
    """
    # In logarithms: exp(1 / 0.05) of the official code overflows fp16, and a score of 5 fp32. Its
    # other constants (the total, K, B) cancel in the last division.
    with torch.autocast(scores_XK.device.type, enabled=False):
        log_q_XK = at_least_fp32(scores_XK) / epsilon
        for _ in range(iterations):
            log_sums_RK = gather(log_q_XK.logsumexp(0)[None])  # one row per rank
            log_q_XK = (log_q_XK - log_sums_RK.logsumexp(0)).log_softmax(1)
        return log_q_XK.exp()
