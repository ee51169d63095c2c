"""Parts of methods that embed several views of a sample with one encoder.

They are crops of several sizes, which are compared, or pieces of an image, which are classified
together (jigsaws, relative patches).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...batch import BatchSpec, TargetSpec
from .heads import feature_dim, hidden_norm_mlp
from .patches import whole_patches

GROUPS = ("global", "local")  # in this order: views 0 and 1 are global


class CropEmbedder(nn.Module):
    """An encoder and a projector for crops of several sizes; those of a group are one batch.

    2 'global' views are needed, 'local' ones are optional.
    """

    def __init__(
        self, method: str, encoder: nn.Module, spec: BatchSpec, *, projector: Sequence[int]
    ) -> None:
        super().__init__()
        spec.require(method, views={"global": 2})
        self.groups = [group for group in GROUPS if group in spec.views]
        whole_patches(method, encoder, spec, self.groups)
        self.encoder = encoder
        sizes = (feature_dim(encoder, method), *projector)
        self.projector = hidden_norm_mlp(sizes, hidden_bias=True, last_bias=True)

    def forward(self, views: Mapping[str, Tensor]) -> Tensor:
        """Embed groups of (V, B, C, H, W) as (V of all groups, B, D), not normalised.

        The head sees the crops of all sizes together, so its BN has one set of statistics for them
        (facebookresearch/swav, resnet50.py:308-323).
        """
        features = torch.cat([self.encoder(views[group].flatten(0, 1)) for group in self.groups])
        z: Tensor = self.projector(features)
        return z.view(-1, views["global"].shape[1], z.shape[1])


class Question(NamedTuple):
    """How many views of group `view` are asked about together, and how many answers there are."""

    view: str
    views: int
    classes: int


def question(method: str, spec: BatchSpec) -> Question:
    """Find the target that is called as the method is: one class id per sample.

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
        """Embed (V, B, C, H, W) as (V, B, dim) in one pass: BN sees all views together."""
        z: Tensor = self.project(self.encoder(views_VBCHW.flatten(0, 1)))
        return z.view(*views_VBCHW.shape[:2], -1)


def joined(z_VBD: Tensor) -> Tensor:
    """Join (V, B, D) to (B, V * D), view after view."""
    return torch.cat(z_VBD.unbind(0), dim=1)
