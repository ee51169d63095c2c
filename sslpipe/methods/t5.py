"""T5: write the spans that were cut out of a row, read from what is left of it.

Raffel et al. 2020, arXiv:1910.10683, section 3.1.4. The task `t5` makes both rows.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import IGNORED, Batch, BatchSpec
from ..encoders.t5 import T5
from ..encoders.tokens import PAD
from ..errors import ContractError
from .method import Output
from .parts.tokens import (
    Guesses,
    TokenMethod,
    accuracy,
    mean_over_tokens,
    one_text_group,
    tokens_a_rank,
)


class SpanDenoising(TokenMethod):
    """Needs targets 't5', and a backbone that reads and writes. All of T5 is kept.

    Each token is asked for after those before it in its document. Logits are scaled by
    1 / sqrt(D), as version 1.0 does, whose output layer is the embedding.
    Metrics: `accuracy`, and the share of the targets' places that are asked for, `tokens`.

    Raises:
        ContractError: the encoder is no T5, so that nothing writes tokens.
    """

    encoder: T5
    asked_for = "target token"

    def __init__(self, encoder: nn.Module, spec: BatchSpec) -> None:
        super().__init__()
        spec.require("t5", views={}, targets=("t5",))
        self.group = one_text_group("t5", spec)
        if not isinstance(encoder, T5):
            raise ContractError(
                f"t5: {type(encoder).__name__} has no decoder that writes tokens; set "
                "train.backbone to t5"
            )
        self.encoder = encoder
        self.chance_loss = math.log(encoder.word.num_embeddings)

    def forward(self, batch: Batch) -> Output:
        """Ask for all tokens of the targets."""
        guesses = self.guesses(batch)
        loss = mean_over_tokens(guesses.logits_NK, guesses.targets_N, weight=guesses.weight)
        asked = (guesses.targets_N != IGNORED).float().mean()
        right = accuracy(guesses.logits_NK, guesses.targets_N)
        return Output(loss, {"accuracy": right, "tokens": asked}, guesses.weight)

    def guesses(self, batch: Batch) -> Guesses:
        """Read once, and write all tokens at once, each from those that truly were before it."""
        segments_2BL, (documents_BT, _) = batch.segments[self.group], batch.segments["t5"]
        targets_BT = batch.targets["t5"][0]
        read_BLD = self.encoder.hidden(batch.views[self.group][0], segments_2BL)
        before_BT = shifted(targets_BT, documents_BT)
        states_BTD = self.encoder.written(before_BT, documents_BT, read_BLD, segments_2BL[0])
        word_KD = self.encoder.word.weight
        logits_NK = F.linear(states_BTD.flatten(0, 1) * self.encoder.dim**-0.5, word_KD)
        targets_N = targets_BT.flatten()
        return Guesses(logits_NK, targets_N, tokens_a_rank(targets_N != IGNORED))


def shifted(targets_BT: Tensor, documents_BT: Tensor) -> Tensor:
    """The token before each, (B, T); padding before the first of a document, and in padding."""
    before = torch.roll(targets_BT, 1, dims=1)
    same = (documents_BT[:, 1:] == documents_BT[:, :-1]) & (documents_BT[:, 1:] >= 0)
    return torch.where(F.pad(same, (1, 0)), before, PAD)
