"""Jigsaw puzzles: tell in which of many known orders the tiles of an image are shown.

Noroozi and Favaro 2016, "Unsupervised learning of visual representations by solving jigsaw
puzzles", arXiv:1603.09246; MehdiNoroozi/JigsawPuzzleSolver. The loss is plain cross entropy.
"""

import torch.nn.functional as F
from torch import nn

from ..batch import Batch, BatchSpec
from .method import Method, Output
from .parts.checks import positive
from .parts.heads import at_least_fp32
from .parts.several_views import Siamese, joined, question


class Jigsaw(Method):
    """Needs targets 'jigsaw', the order's number, and the tiles in that order as views.

    fc6 per tile, then fc7 and fc8 on all: the context-free network, on any encoder. Without the
    dropout of its AlexNet, which encoders with batch norm do without.
    """

    # the encoder of one tile is kept; it takes whole images as well
    encoders = (("student", "siamese.encoder"),)

    def __init__(
        self, encoder: nn.Module, spec: BatchSpec, *, tile_dim: int = 1024, hidden: int = 4096
    ) -> None:
        super().__init__()
        positive(tile_dim=tile_dim, hidden=hidden)
        asked = question("jigsaw", spec)
        self.view = asked.view
        self.siamese = Siamese(encoder, tile_dim, "jigsaw")
        self.head = nn.Sequential(
            nn.Linear(asked.views * tile_dim, hidden), nn.ReLU(), nn.Linear(hidden, asked.classes)
        )

    def forward(self, batch: Batch) -> Output:
        """Encode each tile for itself, then look at all."""
        order_B = batch.targets["jigsaw"][0]
        logits_BK = at_least_fp32(self.head(joined(self.siamese(batch.views[self.view]))))
        accuracy = (logits_BK.argmax(1) == order_B).float().mean()
        return Output(F.cross_entropy(logits_BK, order_B), {"accuracy": accuracy})
