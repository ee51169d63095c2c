'''Encoders: images (B, C, H, W) become features (B, D). They stand below the methods.

An encoder of your own is a class in a package of yours. A recipe names it as its backbone,
`backbone: {"my_package.encoders:PatchMeans": {dim: 64}}`, and it is called with the spec of the
views that it will see and these settings:

```python
from torch import Tensor, nn

from sslpipe.batch import ViewSpec
from sslpipe.encoders import Encoder


class PatchMeans(Encoder):
    """One linear layer per patch; features are its means."""

    def __init__(self, view: ViewSpec, *, dim: int, patch_size: int = 8) -> None:
        super().__init__()
        self.dim, self.patch_size = dim, patch_size
        self.embed = nn.Conv2d(view.size("C"), dim, kernel_size=patch_size, stride=patch_size)

    def maps(self, images_BCHW: Tensor) -> Tensor:  # for methods that ask for a MapEncoder
        return self.embed(images_BCHW)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.maps(images_BCHW).mean((2, 3))
```
'''

from .image import build_encoder
from .protocols import BlockEncoder, BlockTokens, Encoder, LayeredEncoder, MapEncoder, PatchEncoder

__all__ = [
    "BlockEncoder",
    "BlockTokens",
    "Encoder",
    "LayeredEncoder",
    "MapEncoder",
    "PatchEncoder",
    "build_encoder",
]
