"""A second question beside hidden tokens: does B follow A, or are they in their order?

NSP: Devlin et al. 2019, arXiv:1810.04805, section 3.1, and the official run_pretraining.py. SOP:
Lan et al. 2020, arXiv:1909.11942, section 3.1 (ALBERT). They differ by what the data side did.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..batch import IGNORED, Batch, BatchSpec
from ..encoders.text import GPT
from ..encoders.tokens import start_bert
from ..errors import ContractError
from .method import Output
from .mlm import MLM
from .parts.checks import not_negative
from .parts.tokens import accuracy, mean_over_tokens, tokens_a_rank


class PairHead(nn.Module):
    """BERT's pooler, a dense layer of tanh on the first token, and logits of two classes."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.pooler, self.classes = nn.Linear(dim, dim), nn.Linear(dim, 2)
        start_bert(self)

    def forward(self, states_BLD: Tensor) -> Tensor:
        """Give logits (B, 2) from the first token of each row."""
        logits_BK: Tensor = self.classes(torch.tanh(self.pooler(states_BLD[:, 0])))
        return logits_BK


class NSP(MLM):
    """Needs targets 'mlm' and 'nsp', and an encoder in which the first token sees the row.

    weight: of the second loss, the mean cross entropy over the rows of all ranks that are asked
    for; officially 1. Metrics: as `mlm`, the losses `guessing` (of tokens) and `pairing`, and the
    share of rows that are right, `paired`.

    Raises:
        ContractError: the encoder is a gpt, whose first token sees nothing behind it.
    """

    task: ClassVar[str] = "nsp"

    def __init__(self, encoder: nn.Module, spec: BatchSpec, *, weight: float = 1.0) -> None:
        super().__init__(encoder, spec)
        spec.require(self.task, views={}, targets=(self.task,))
        not_negative(weight=weight)
        if isinstance(encoder, GPT):
            raise ContractError(
                f"{self.task}: the first token of a row stands for it, which sees nothing behind "
                "it in gpt; set train.backbone to bert or albert"
            )
        self.weight = weight
        self.chance_loss = math.log(self.encoder.word.num_embeddings) + weight * math.log(2)
        self.pairs = PairHead(self.encoder.dim)

    def forward(self, batch: Batch) -> Output:
        """One pass of the encoder for both."""
        states_BLD = self.encoder.hidden(batch.views[self.group][0], batch.segments[self.group])
        guessed = self.judged(self.guessed(states_BLD, batch), batch)
        logits_BK, classes_B = self.pairs(states_BLD), batch.targets[self.task][0]
        weight_K = self.term_weights(batch)
        pairing = mean_over_tokens(logits_BK, classes_B, weight=weight_K[1])
        terms_K = torch.stack([guessed.loss, self.weight * pairing])
        metrics = {
            **guessed.metrics,
            "guessing": guessed.loss.detach(),
            "pairing": pairing.detach(),
            "paired": accuracy(logits_BK, classes_B),
        }
        return Output(terms_K.sum(), metrics, weight_K, terms_K)

    def term_weights(self, batch: Batch) -> Tensor:
        """Count hidden tokens and rows that have a class, (2,)."""
        asked = (batch.targets[name] != IGNORED for name in ("mlm", self.task))
        return torch.stack([tokens_a_rank(each) for each in asked])


class SOP(NSP):
    """As NSP, of targets 'mlm' and 'sop': the same head on another question."""

    task: ClassVar[str] = "sop"
