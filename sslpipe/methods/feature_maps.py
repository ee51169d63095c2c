"""Parts of methods that rebuild pictures from an encoder's feature maps: (B, D, h, w)."""

import itertools
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ContractError


@runtime_checkable
class MapEncoder(Protocol):
    """An encoder that shows what it pools; those of backbones do."""

    dim: int

    def maps(self, images_BCHW: Tensor) -> Tensor:
        """(B, D, h, w) before pooling."""


def map_encoder(method: str, encoder: nn.Module) -> MapEncoder:
    """The encoder, which shows its maps.

    Raises:
        ContractError: it does not.
    """
    if not isinstance(encoder, MapEncoder):
        raise ContractError(
            f"{method} needs an encoder with dim and maps(images); {type(encoder).__name__} lacks "
            "one. Set train.backbone to a ResNet or ViT, such as resnet50"
        )
    return encoder


class MapDecoder(nn.Module):
    """Transposed convolutions that double the maps once per width, then a linear one.

    Context encoders' (pathak22/context-encoder, train.lua: 4 x 4, stride 2, BN, ReLU).
    """

    def __init__(self, dim: int, widths: Sequence[int], channels: int) -> None:
        super().__init__()
        if min(widths, default=0) < 1:
            raise ValueError(f"decoder = {list(widths)} must hold one width or more, all above 0")
        layers: list[nn.Module] = []
        for wide, narrow in itertools.pairwise([dim, *widths]):
            layers += [
                nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(narrow),
                nn.ReLU(),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], channels, 1))

    def forward(self, maps_BDHW: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, channels, *size); where doubling does not end there, bilinear."""
        made: Tensor = self.layers(maps_BDHW)
        if made.shape[-2:] == size:
            return made
        return F.interpolate(made, size=size, mode="bilinear", align_corners=False)
