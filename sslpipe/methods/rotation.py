"""RotNet: tell by how many quarter turns each view was rotated.

Gidaris et al. 2018, "Unsupervised representation learning by predicting image rotations",
arXiv:1803.07728.
"""

import math

import torch.nn.functional as F
from torch import nn

from ..batch import Batch, BatchSpec
from .method import Method, Output
from .parts.heads import at_least_fp32, feature_dim


class Rotation(Method):
    """Needs targets 'rotation': class ids of every view of the group they are declared for."""

    encoder: nn.Module

    def __init__(self, encoder: nn.Module, spec: BatchSpec) -> None:
        super().__init__()
        spec.require("rotation", views={}, targets=("rotation",))
        target = spec.targets["rotation"]
        spec.require("rotation", views={target.view: target.count})
        self.view = target.view
        self.encoder = encoder
        classes = spec.classes("rotation", "rotation")
        self.chance_loss = math.log(classes)
        self.head = nn.Linear(feature_dim(encoder, "rotation"), classes)

    def forward(self, batch: Batch) -> Output:
        """Guess all turns in one forward: they must share BN's statistics.

        Batch norm would give a turn away that has statistics of its own.
        """
        views_VBCHW = batch.views[self.view]
        turns = batch.targets["rotation"].flatten()
        logits = at_least_fp32(self.head(self.encoder(views_VBCHW.flatten(0, 1))))
        accuracy = (logits.argmax(1) == turns).float().mean()
        return Output(F.cross_entropy(logits, turns), {"accuracy": accuracy})
