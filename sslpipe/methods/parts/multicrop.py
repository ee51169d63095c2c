"""What methods of several crop sizes share: one encoder pass per size, the head once over all."""

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ...batch import BatchSpec
from .heads import feature_dim
from .patches import whole_patches

GROUPS = ("global", "local")  # in this order: views 0 and 1 are global


class CropEmbedder(nn.Module):
    """Encoder and projector; 'local' views are optional, and all of a group are one batch."""

    def __init__(
        self, method: str, encoder: nn.Module, spec: BatchSpec, *, projector: Sequence[int]
    ) -> None:
        super().__init__()
        spec.require(method, views={"global": 2})
        self.groups = [group for group in GROUPS if group in spec.views]
        whole_patches(method, encoder, spec, self.groups)
        self.encoder = encoder
        self.projector = hidden_batch_norm_mlp((feature_dim(encoder, method), *projector))

    def forward(self, views: Mapping[str, Tensor]) -> Tensor:
        """Groups of (V, B, C, H, W) -> (V of all groups, B, D), not normalised.

        The head sees the crops of all sizes together, so its BN has one set of statistics for them
        (facebookresearch/swav, resnet50.py:308-323).
        """
        features = torch.cat([self.encoder(views[group].flatten(0, 1)) for group in self.groups])
        z: Tensor = self.projector(features)
        return z.view(-1, views["global"].shape[1], z.shape[1])


def hidden_batch_norm_mlp(
    sizes: Sequence[int], activation: type[nn.Module] = nn.ReLU
) -> nn.Sequential:
    """Linear layers with BN and activation behind each but the last: SwAV's and MSN's heads."""
    layers: list[nn.Module] = []
    for wide, narrow in itertools.pairwise(sizes):
        layers += [nn.Linear(wide, narrow), nn.BatchNorm1d(narrow), activation()]
    return nn.Sequential(*layers[:-2])
