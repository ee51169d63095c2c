"""Parts of methods that rebuild pictures from an encoder's feature maps: (B, D, h, w)."""

import copy
import itertools
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...batch import ViewSpec
from ...encoders.protocols import MapEncoder
from ...errors import ContractError
from .checks import positive
from .heads import feature_dim


def map_shape(method: str, encoder: nn.Module, view: ViewSpec) -> tuple[int, int, int]:
    """Find (D, h, w) of the encoder's maps of a view on the meta device: nothing is computed.

    Raises:
        ContractError: the encoder has no such maps, or does not take such a view.
    """
    image = torch.empty(1, *view.shape, device="meta")
    shape: tuple[int, ...] = ()
    if isinstance(encoder, MapEncoder):
        twin = copy.deepcopy(encoder).to("meta").eval()
        try:
            shape = tuple(cast(MapEncoder, twin).maps(image).shape)
        except RuntimeError as error:
            raise ContractError(
                f"{method}: {type(encoder).__name__} does not take views of "
                f"{view.shown} ({error}); set the views, or train.backbone"
            ) from error
    if len(shape) != 4 or shape[1] != feature_dim(encoder, method):
        raise ContractError(
            f"{method} needs an encoder with maps(images) of shape (B, D, h, w); "
            f"{type(encoder).__name__} gives {shape or 'none'}. Set train.backbone to a ResNet, "
            "another convolutional model, or a ViT"
        )
    return shape[1], shape[2], shape[3]


class MapDecoder(nn.Module):
    """Transposed convolutions double the maps once per width, then a linear one makes channels.

    Context encoders' (pathak22/context-encoder, train.lua: 4 x 4, stride 2, BN, ReLU).
    """

    def __init__(self, dim: int, widths: Sequence[int], channels: int) -> None:
        super().__init__()
        positive(decoder=widths)
        layers: list[nn.Module] = []
        for wide, narrow in itertools.pairwise([dim, *widths]):
            layers += [
                nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(narrow),
                nn.ReLU(),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], channels, 1))

    def forward(self, maps_BDHW: Tensor, size: tuple[int, int]) -> Tensor:
        """Paint (B, channels, *size); where doubling does not end there, bilinearly."""
        made: Tensor = self.layers(maps_BDHW)
        if made.shape[-2:] == size:
            return made
        return F.interpolate(made, size=size, mode="bilinear", align_corners=False)
