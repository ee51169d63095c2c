"""Masked language modelling: guess hidden tokens from both sides of their document.

Devlin et al. 2019 (BERT), without next-sentence prediction, as in RoBERTa (Liu et al. 2019).
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from ..batch import Batch, BatchSpec
from ..encoders.text import TokenEncoder
from ..errors import ContractError
from .method import Method, Output
from .parts.tokens import IGNORED, mean_over_tokens, one_text_group


class MLM(Method):
    """Needs targets 'mlm', and an encoder of tokens whose embedding the output layer shares.

    Metrics: `accuracy` on hidden tokens, and the share of tokens that are `hidden`.
    """

    encoder: TokenEncoder

    def __init__(self, encoder: nn.Module, spec: BatchSpec) -> None:
        super().__init__()
        spec.require("mlm", views={}, targets=("mlm",))
        self.group = one_text_group("mlm", spec)
        if not isinstance(encoder, TokenEncoder):
            raise ContractError(
                f"mlm: {type(encoder).__name__} gives no states of tokens; set train.backbone to "
                "bert"
            )
        self.encoder = encoder
        self.chance_loss = math.log(encoder.word.num_embeddings)
        dim = encoder.dim
        self.transform = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.LayerNorm(dim, eps=1e-12))
        self.bias = nn.Parameter(torch.zeros(encoder.word.num_embeddings))

    def forward(self, batch: Batch) -> Output:
        """Run the output layer on hidden tokens alone: a sixth of its work."""
        tokens_BL, targets_BL = batch.views[self.group][0], batch.targets["mlm"][0]
        states_BLD = self.encoder.hidden(tokens_BL, batch.segments[self.group])
        asked_BL = targets_BL != IGNORED
        logits_NK = F.linear(
            self.transform(states_BLD[asked_BL]), self.encoder.word.weight, self.bias
        )
        targets_N = targets_BL[asked_BL]
        right = (logits_NK.argmax(1) == targets_N).float().mean()
        loss = mean_over_tokens(logits_NK, targets_N)
        return Output(loss, {"accuracy": right.detach(), "hidden": asked_BL.float().mean()})
