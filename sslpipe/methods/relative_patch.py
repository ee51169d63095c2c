"""Context prediction: tell on which side of the first patch the second one lies.

Doersch et al. 2015, "Unsupervised visual representation learning by context prediction",
arXiv:1505.05192; cdoersch/deepcontext, train.py. The loss is plain cross entropy; the official sum
over pairs and its rate of 1e-5 are a mean here.
"""

import torch
import torch.nn.functional as F
from torch import nn

from ..batch import Batch, BatchSpec
from ..errors import ContractError
from .method import Method, Output
from .parts.checks import positive
from .parts.heads import at_least_fp32
from .parts.several_views import Siamese, joined, question


class RelativePatch(Method):
    """Needs targets 'relative_patch' and two views: the patches.

    Places are numbered row by row around the first patch, so the one opposite to k is K - 1 - k.

    Raises:
        ContractError: the question is not about two views.
    """

    # the encoder of one patch is kept; it takes whole images as well
    encoders = (("student", "siamese.encoder"),)

    def __init__(
        self, encoder: nn.Module, spec: BatchSpec, *, patch_dim: int = 4096, hidden: int = 4096
    ) -> None:
        super().__init__()
        positive(patch_dim=patch_dim, hidden=hidden)
        asked = question("relative_patch", spec)
        if asked.views != 2:
            raise ContractError(
                f"relative_patch needs 2 {asked.view!r} views; this recipe makes {asked.views}. "
                "Set targets.relative_patch.task to relative_patch"
            )
        self.view, self.classes = asked.view, asked.classes
        self.siamese = Siamese(encoder, patch_dim, "relative_patch")
        self.head = nn.Sequential(
            nn.Linear(2 * patch_dim, hidden), nn.BatchNorm1d(hidden), nn.ReLU(),
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, asked.classes),
        )  # fmt: skip

    def forward(self, batch: Batch) -> Output:
        """Ask both ways round, as the official code does: of the pair and of the pair swapped."""
        place_B = batch.targets["relative_patch"][0]
        z_VBD = self.siamese(batch.views[self.view])
        logits = self.head(torch.cat([joined(z_VBD), joined(z_VBD.flip(0))]))
        logits = at_least_fp32(logits)
        places = torch.cat([place_B, self.classes - 1 - place_B])
        accuracy = (logits.argmax(1) == places).float().mean()
        return Output(F.cross_entropy(logits, places), {"accuracy": accuracy})
