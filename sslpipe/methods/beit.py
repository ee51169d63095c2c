"""BEiT: guess the discrete tokens of hidden patches.

Bao et al. 2021, "BEiT: BERT pre-training of image transformers", arXiv:2106.08254;
microsoft/unilm/beit, engine_for_pretraining.py. K token ids, E dimensions of a code, S hidden
patches here.
Deviation: the paper's tokenizer is DALL-E's dVAE, which was trained on 250 million images and has
to be downloaded; the default here needs neither data nor weights. A dVAE, or anything else, is a
class of the user's own. The tokenizer reads the student's own view, not a second one of 112 px from
the same box.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Protocol, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import Batch, BatchSpec
from ..encoders.libraries import undecayed_by_name
from ..encoders.patches import take
from ..encoders.protocols import PatchEncoder
from ..recipe.names import Entry, call, choose
from .mae import patchify
from .method import Method, Output
from .parts.checks import check_axes
from .parts.collapse import MASKED_CAUSES
from .parts.heads import at_least_fp32, feature_dim
from .parts.patches import mean_of_real, padded, patch_mask


class Tokenizer(Protocol):
    """What BEiT asks of a tokenizer, which it builds, freezes and keeps in eval mode.

    It is built as `Tokenizer(patch_size, channels, *, settings)`.
    """

    vocabulary: int  # K

    def tokenize(self, images_BCHW: Tensor) -> Tensor:
        """Give the patches ids in [0, K), row-major: (B, N) int64.

        The images are the student's view, normalised as its recipe says: what wants pixels in
        [0, 1] or another size (the dVAE: 112 px for 14 x 14 ids) undoes that itself.
        """


class RandomProjection(nn.Module):
    """A patch's id is the nearest of K random codes to its random projection; nothing is trained.

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
        """Give ids of the patches, each scaled by its own mean and deviation: (B, N) int64.

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


def tokenizer_entry(setting: str | dict[str, dict[str, Any]], where: str) -> Entry:
    """Make an entry of a method's setting, `name` or `{name: {setting: value}}`.

    Raises:
        ValueError: more or less than one name.
    """
    named = {setting: {}} if isinstance(setting, str) else setting
    if len(named) != 1:
        raise ValueError(f"{where} = {setting}; give one name, or one name with its settings")
    ((name, settings),) = named.items()
    return Entry(name, settings, where)


def beit_loss(logits_BSK: Tensor, ids_BS: Tensor, real_BS: Tensor) -> Tensor:
    """Eq. 2: cross entropy of the hidden patches' ids, the mean over all of them.

    Images hide different numbers of patches (blockwise.py); each patch counts alike, as officially.
    """
    check_axes("beit_loss", logits_BSK=logits_BSK, ids_BS=ids_BS, real_BS=real_BS)
    with torch.autocast(logits_BSK.device.type, enabled=False):
        logits_XK = at_least_fp32(logits_BSK).flatten(0, 1)
        nll_X = F.cross_entropy(logits_XK, ids_BS.flatten(), reduction="none")
        return mean_of_real(nll_X.view_as(ids_BS), real_BS)


@torch.no_grad()
def token_monitors(logits_BSK: Tensor, ids_BS: Tensor, real_BS: Tensor) -> dict[str, Tensor]:
    """Tell the accuracy of the guesses, and the entropy (nats) of this rank's ids: scalars.

    A loss below the entropy has learned more than how often each id occurs.
    """
    real = real_BS.float()
    counts_K = real.new_zeros(logits_BSK.shape[-1])
    counts_K.scatter_add_(0, ids_BS.flatten(), real.flatten())
    hits = (logits_BSK.argmax(-1) == ids_BS) * real
    return {
        "accuracy": hits.sum() / real.sum(),
        "token_entropy": torch.special.entr(counts_K / counts_K.sum()).sum(),
    }


class BEiT(Method):
    """Needs 1 'global' view and masks 'blocks'; uses the first of each."""

    encoder: nn.Module
    collapse_causes = MASKED_CAUSES

    def __init__(
        self,
        encoder: nn.Module,
        spec: BatchSpec,
        *,
        tokenizer: str | dict[str, dict[str, Any]] = "random_projection",
    ) -> None:
        super().__init__()
        mask = patch_mask("beit", encoder, spec, "blocks")
        dim = feature_dim(encoder, "beit")
        self.encoder = encoder
        self.tokenizer = build_tokenizer(
            tokenizer_entry(tokenizer, "method.beit.tokenizer"),
            patch_size=mask.patch[0],
            channels=spec.views["global"].size("C"),
        )
        if isinstance(self.tokenizer, nn.Module):
            self.tokenizer.requires_grad_(False)
        # 3-D, as officially, where it is therefore decayed
        self.mask_token_11D = nn.Parameter(torch.empty(1, 1, dim))
        self.head = nn.Linear(dim, self.tokenizer.vocabulary)
        for weight in (self.mask_token_11D, self.head.weight):
            nn.init.trunc_normal_(weight, std=0.02, a=-0.02, b=0.02)
        nn.init.zeros_(self.head.bias)

    def train(self, mode: bool = True) -> Self:
        """Switch the mode of all but the tokenizer: a dVAE may have dropout or batch norm."""
        super().train(mode)
        if isinstance(self.tokenizer, nn.Module):
            self.tokenizer.eval()
        return self

    def forward(self, batch: Batch) -> Output:
        """Encode with mask tokens at the hidden places; the head sees the hidden ones only."""
        images_BCHW, hidden_BN = batch.views["global"][0], batch.masks["blocks"][0]
        with torch.no_grad():
            ids_BN = self.tokenizer.tokenize(images_BCHW)
        encoder = cast(PatchEncoder, self.encoder)
        mask_token_D = self.mask_token_11D[0, 0]
        tokens_BTD = encoder.tokens(images_BCHW, hidden_BN=hidden_BN, mask_token_D=mask_token_D)
        hidden = padded(hidden_BN, batch.hidden["blocks"][0])
        logits_BSK = self.head(take(tokens_BTD[:, 1:], hidden.index_BS))
        ids_BS = ids_BN.gather(1, hidden.index_BS)
        loss = beit_loss(logits_BSK, ids_BS, hidden.real_BS)
        return Output(loss, token_monitors(logits_BSK, ids_BS, hidden.real_BS))

    def undecayed_parameters(self) -> Iterable[nn.Parameter]:
        """Spare the class token and positions of the encoder (run_beit_pretraining.py)."""
        return undecayed_by_name(self.encoder)
