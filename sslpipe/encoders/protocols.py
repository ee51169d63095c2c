"""What an encoder is, and what some methods ask of one beside features.

`Encoder` is the base of ours and may be that of yours. The Protocols are what methods check: a
module that declares the same members without the base is taken as well.
Letters: D features, N patches, S visible patches, L last blocks, h x w places of a map.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn


class Encoder(nn.Module, ABC):
    """Images (B, C, H, W), or views of other axes, become features (B, D)."""

    dim: int  # D
    # pixels; sides of views must be its multiples. A number for each axis but channels, or for all
    patch_size: int | tuple[int, ...] = 1

    @abstractmethod
    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Give the pooled features of each image, (B, D)."""


def declared_dim(encoder: nn.Module) -> int | None:
    """Tell D, if the encoder declares it; it need not be an Encoder.

    It is asked for and not looked up by a Protocol, which does not see what a wrapper passes on
    (torch.compile's; from Python 3.12 on).
    """
    try:
        dim = encoder.dim
    except AttributeError:
        return None
    return dim if isinstance(dim, int) else None


@runtime_checkable
class PatchEncoder(Protocol):
    """An encoder that shows its patches, for methods that hide some; our ViT is one."""

    patch_size: int | tuple[int, ...]  # pixels, of each axis or of all

    def tokens(
        self,
        images_BCHW: Tensor,
        visible_BS: Tensor | None = None,
        *,
        real_BS: Tensor | None = None,
        hidden_BN: Tensor | None = None,
        mask_token_D: Tensor | None = None,
    ) -> Tensor:
        """Give class token and patches after the final norm, (B, 1 + N, D) or (B, 1 + S, D).

        `visible_BS`, int64 patch numbers: only these patches are seen, in this order. `real_BS`,
        bool: False is padding of `visible_BS`. `hidden_BN`, bool: `mask_token_D` stands for these
        patches.
        """


@runtime_checkable
class MapEncoder(Protocol):
    """An encoder that shows the map it pools, for methods that rebuild pictures from it."""

    def maps(self, images_BCHW: Tensor) -> Tensor:
        """Give what is pooled to features, (B, D, h, w)."""


@runtime_checkable
class LayeredEncoder(Protocol):
    """An encoder that shows what its L blocks add, for data2vec 2.0; our ViT is one."""

    def feed_forwards(self, images_BCHW: Tensor) -> Tensor:
        """Give what the MLP of each block adds to its tokens: (L, B, 1 + N, D)."""


class BlockTokens(NamedTuple):
    """What one forward pass shows of the last L blocks, all through the final norm.

    `features` (B, D) are those of `forward`, to the bit. `classes` (B, L, D): the class token after
    each of these blocks, the last one last, as DINO's get_intermediate_layers gives them; None
    where there is no such token. `patches` (B, N, D): the patches' tokens of the last block.
    """

    features: Tensor
    classes: Tensor | None
    patches: Tensor


@runtime_checkable
class BlockEncoder(Protocol):
    """An encoder that shows the tokens after its last blocks; our ViT and timm's are such."""

    def last_blocks(self, images_BCHW: Tensor, count: int) -> BlockTokens:
        """Encode once and show the last `count` blocks; all of them, if there are fewer."""
