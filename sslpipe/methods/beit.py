"""BEiT: guess the discrete tokens of hidden patches.

Bao et al. 2021, "BEiT: BERT pre-training of image transformers", arXiv:2106.08254;
microsoft/unilm/beit, engine_for_pretraining.py. K token ids, S hidden patches here.
Deviation: the default tokenizer is not the paper's dVAE (tokenizers.py says what it is), and it
reads the student's own view, not a second one of 112 px from the same box.
"""

from collections.abc import Iterable
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import Batch, BatchSpec
from ..encoders.patches import PatchEncoder
from . import tokenizers
from .method import Output
from .parts.axes import check_axes
from .parts.heads import at_least_fp32, feature_dim
from .parts.patches import patch_mask, take, undecayed_by_name
from .parts.ragged import mean_of_real, padded


def beit_loss(logits_BSK: Tensor, ids_BS: Tensor, real_BS: Tensor) -> Tensor:
    """Eq. 2: cross entropy of the hidden patches' ids, the mean over all of them.

    Images hide different numbers of patches (65 to 75); each patch counts alike, as officially.
    """
    check_axes("beit_loss", logits_BSK=logits_BSK, ids_BS=ids_BS, real_BS=real_BS)
    with torch.autocast(logits_BSK.device.type, enabled=False):
        logits_XK = at_least_fp32(logits_BSK).flatten(0, 1)
        nll_X = F.cross_entropy(logits_XK, ids_BS.flatten(), reduction="none")
        return mean_of_real(nll_X.view_as(ids_BS), real_BS)


@torch.no_grad()
def monitors(logits_BSK: Tensor, ids_BS: Tensor, real_BS: Tensor) -> dict[str, Tensor]:
    """Accuracy, and the entropy (nats) of this rank's ids.

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


class BEiT(nn.Module):
    """Needs 1 'global' view and masks 'blocks'; uses the first of each."""

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
        self.tokenizer = tokenizers.build_tokenizer(
            tokenizers.entry(tokenizer, "method.beit.tokenizer"),
            patch_size=mask.patch[0],
            channels=spec.views["global"].size("C"),
        )
        if isinstance(self.tokenizer, nn.Module):
            self.tokenizer.requires_grad_(False)
        self.mask_token = nn.Parameter(torch.empty(dim))
        self.head = nn.Linear(dim, self.tokenizer.vocabulary)
        for weight in (self.mask_token, self.head.weight):
            nn.init.trunc_normal_(weight, std=0.02, a=-0.02, b=0.02)
        nn.init.zeros_(self.head.bias)

    def train(self, mode: bool = True) -> Self:
        """The tokenizer stays in eval mode: a dVAE may have dropout or batch norm."""
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
        tokens_BTD = encoder.tokens(images_BCHW, hidden_BN=hidden_BN, mask_token_D=self.mask_token)
        hidden = padded(hidden_BN, batch.hidden["blocks"][0])
        logits_BSK = self.head(take(tokens_BTD[:, 1:], hidden.index_BS))
        ids_BS = ids_BN.gather(1, hidden.index_BS)
        loss = beit_loss(logits_BSK, ids_BS, hidden.real_BS)
        return Output(loss, monitors(logits_BSK, ids_BS, hidden.real_BS))

    def undecayed_parameters(self) -> Iterable[nn.Parameter]:
        """Class token and positions of the encoder (run_beit_pretraining.py)."""
        return undecayed_by_name(self.encoder)

    def after_step(self, progress: float) -> None:
        """Nothing follows a step."""
