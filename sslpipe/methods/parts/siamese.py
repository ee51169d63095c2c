"""Parts of methods that classify several views of a sample together: jigsaws, relative patches."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...batch import BatchSpec, TargetSpec
from .heads import feature_dim


class Question(NamedTuple):
    """What is asked of all views of group `view` together, and how many answers there are."""

    view: str
    views: int
    classes: int


def question(method: str, spec: BatchSpec) -> Question:
    """The target that is called as the method is: one class id per sample.

    Raises:
        ContractError: the recipe's batches do not hold it.
    """
    spec.require(method, views={}, targets=(method,))
    target: TargetSpec = spec.targets[method]
    classes = spec.classes(method, method)
    return Question(target.view, spec.views[target.view].count, classes)


class Siamese(nn.Module):
    """One encoder and one linear layer (fc6) for every view, joined in the order of views."""

    def __init__(self, encoder: nn.Module, dim: int, method: str) -> None:
        super().__init__()
        self.encoder = encoder
        self.project = nn.Sequential(nn.Linear(feature_dim(encoder, method), dim), nn.ReLU())

    def forward(self, views_VBCHW: Tensor) -> Tensor:
        """(V, B, C, H, W) -> (V, B, dim) in one pass: BN sees all views together."""
        z: Tensor = self.project(self.encoder(views_VBCHW.flatten(0, 1)))
        return z.view(*views_VBCHW.shape[:2], -1)


def joined(z_VBD: Tensor) -> Tensor:
    """(V, B, D) -> (B, V * D), view after view."""
    return torch.cat(z_VBD.unbind(0), dim=1)
