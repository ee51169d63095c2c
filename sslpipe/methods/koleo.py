"""KoLeo: features of different images keep their distance from their nearest neighbour.

Sablayrolles et al. 2019, "Spreading vectors for similarity search", arXiv:1806.03198;
facebookresearch/dinov2, koleo_loss.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .parts.axes import check_axes
from .parts.heads import at_least_fp32


def koleo_loss(features_BD: Tensor, *, eps: float = 1e-8) -> Tensor:
    """Section 3.1: minus the mean log distance to the nearest neighbour, on the unit sphere.

    Neighbours are sought among this rank's B samples, 2 or more; nothing is gathered.
    """
    check_axes("koleo_loss", features_BD=features_BD)
    with torch.autocast(features_BD.device.type, enabled=False):
        x_BD = F.normalize(at_least_fp32(features_BD), dim=1, eps=eps)
        cosines_BB = (x_BD @ x_BD.T).detach()
        nearest_B = cosines_BB.fill_diagonal_(-2.0).argmax(1)
        distance_B = F.pairwise_distance(x_BD, x_BD.index_select(0, nearest_B), eps=eps)
        return -(distance_B + eps).log().mean()
