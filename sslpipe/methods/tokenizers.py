"""Tokenizers of patches, whose ids BEiT predicts. K ids, E dimensions of a code here.

The paper's is DALL-E's dVAE, which was trained on 250 million images and has to be downloaded.
Ours needs neither data nor weights. A dVAE, or anything else, is a class of the user's own.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..recipe.names import Entry, call, choose
from .mae import patchify


class Tokenizer(Protocol):
    """Built as `Tokenizer(patch_size, channels, *, settings)`; frozen, in eval mode."""

    vocabulary: int  # K

    def tokenize(self, images_BCHW: Tensor) -> Tensor:
        """Ids in [0, K) of the patches, row-major: (B, N) int64.

        The images are the student's view, normalised as its recipe says: what wants pixels in
        [0, 1] or another size (the dVAE: 112 px for 14 x 14 ids) undoes that itself.
        """


class RandomProjection(nn.Module):
    """Nearest of K random codes to a random projection of the patch; nothing is trained.

    The quantizer of BEST-RQ (Chiu et al. 2022, arXiv:2202.01855, section 3.1, made for speech): a
    fixed random matrix, codes drawn from a normal distribution, both sides on the unit sphere.
    The ids are a function of the patch and `seed` alone.
    """

    projection_PE: Tensor
    codes_KE: Tensor

    def __init__(
        self, patch_size: int, channels: int, *, vocabulary: int = 8192, dim: int = 16,
        seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        if vocabulary < 2 or dim < 1:
            raise ValueError(f"vocabulary = {vocabulary} must be 2 or more, dim = {dim} 1 or more")
        generator = torch.Generator().manual_seed(seed)
        values = patch_size**2 * channels
        self.vocabulary = vocabulary
        self.patch_size = patch_size
        projection_PE = torch.empty(values, dim)
        nn.init.xavier_uniform_(projection_PE, generator=generator)
        codes_KE = F.normalize(torch.randn(vocabulary, dim, generator=generator), dim=1)
        self.register_buffer("projection_PE", projection_PE)
        self.register_buffer("codes_KE", codes_KE)

    def tokenize(self, images_BCHW: Tensor) -> Tensor:
        """Ids of the patches, each scaled by its own mean and deviation; (B, N) int64.

        Without that scaling a few codes take all: of 8192, patches of 4 px of CIFAR-10 used as
        many as 119 equally likely ones would be, with it 448 (exp of the entropy). On the unit
        sphere the nearest code is that of the largest product.
        """
        with torch.autocast(images_BCHW.device.type, enabled=False):
            patches_BNP = patchify(images_BCHW.to(self.codes_KE.dtype), self.patch_size)
            var_BN1, mean_BN1 = torch.var_mean(patches_BNP, dim=-1, keepdim=True)
            patches_BNP = (patches_BNP - mean_BN1) / (var_BN1 + 1e-6).sqrt()
            return (patches_BNP @ self.projection_PE @ self.codes_KE.T).argmax(-1)


TOKENIZERS: Mapping[str, type[RandomProjection]] = MappingProxyType(
    {"random_projection": RandomProjection}
)


def build_tokenizer(entry: Entry, *, patch_size: int, channels: int) -> Tokenizer:
    """Make the tokenizer that an entry names; a user's own is `package.module:Class`.

    Raises:
        RecipeError: unknown name or setting.
    """
    chosen = choose(entry, TOKENIZERS, "tokenizer")
    return cast(Tokenizer, call(chosen, entry, patch_size, channels))


def entry(setting: str | dict[str, dict[str, Any]], where: str) -> Entry:
    """A method's setting, `name` or `{name: {setting: value}}`, as an entry.

    Raises:
        ValueError: more or less than one name.
    """
    named = {setting: {}} if isinstance(setting, str) else setting
    if len(named) != 1:
        raise ValueError(f"{where} = {setting}; give one name, or one name with its settings")
    ((name, settings),) = named.items()
    return Entry(name, settings, where)
