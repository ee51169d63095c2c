"""Causal language modelling: guess each token from those before it in its document.

Radford et al. 2019 (GPT-2). No token is asked for across the border of two documents in a row: the
first of each has nothing before it.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import IGNORED, Batch, BatchSpec
from ..encoders.tokens import TokenEncoder
from ..errors import ContractError
from .method import Output
from .parts.tokens import Guesses, TokenMethod, mean_over_tokens, one_text_group, tokens_a_rank


class CausalLM(TokenMethod):
    """Needs a group of tokens and an encoder of them; its output layer is the embedding.

    Metrics: `bits` per token, and the share of `tokens` that are asked for.

    Raises:
        ContractError: the encoder gives no states of tokens.
    """

    encoder: TokenEncoder
    codes_text = True

    def __init__(self, encoder: nn.Module, spec: BatchSpec) -> None:
        super().__init__()
        self.group = one_text_group("causal_lm", spec)
        if not isinstance(encoder, TokenEncoder):
            raise ContractError(
                f"causal_lm: {type(encoder).__name__} gives no states of tokens; set "
                "train.backbone to gpt"
            )
        self.encoder = encoder
        self.chance_loss = math.log(encoder.word.num_embeddings)

    def forward(self, batch: Batch) -> Output:
        """Ask for every token but the first of each document."""
        guesses = self.guesses(batch)
        loss = mean_over_tokens(guesses.logits_NK, guesses.targets_N, weight=guesses.weight)
        asked = (guesses.targets_N != IGNORED).float().mean()
        metrics = {"bits": loss.detach() / math.log(2), "tokens": asked}
        return Output(loss, metrics, guesses.weight)

    def guesses(self, batch: Batch) -> Guesses:
        """What each token is held to be before it is seen; N = B L."""
        tokens_BL, segments_2BL = batch.views[self.group][0], batch.segments[self.group]
        states_BLD = self.encoder.hidden(tokens_BL, segments_2BL)
        targets_BL = next_tokens(tokens_BL, segments_2BL[0])
        logits_NK = F.linear(states_BLD.flatten(0, 1), self.encoder.word.weight)
        return Guesses(logits_NK, targets_BL.flatten(), tokens_a_rank(targets_BL != IGNORED))


def next_tokens(tokens_BL: Tensor, documents_BL: Tensor) -> Tensor:
    """The token behind each one, (B, L); IGNORED where that is of another document, or padding."""
    behind = torch.roll(tokens_BL, -1, dims=1)
    same = (documents_BL[:, 1:] == documents_BL[:, :-1]) & (documents_BL[:, 1:] >= 0)
    return torch.where(F.pad(same, (0, 1)), behind, IGNORED)
