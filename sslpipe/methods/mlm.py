"""Masked language modelling: guess hidden tokens from both sides of their document.

Devlin et al. 2019 (BERT), without next-sentence prediction (nsp.py), as in RoBERTa (Liu et al.
2019).
"""

import math

from torch import Tensor, nn

from ..batch import IGNORED, Batch, BatchSpec
from ..encoders.tokens import TokenEncoder
from ..errors import ContractError
from .method import Output
from .parts.tokens import (
    Guesses,
    MaskedTokenHead,
    TokenMethod,
    accuracy,
    chosen_tokens,
    mean_over_tokens,
    one_text_group,
    states_at,
)


class MLM(TokenMethod):
    """Needs targets 'mlm', and an encoder of tokens whose embedding the output layer shares.

    Metrics: `accuracy` on hidden tokens, and the share of tokens that are `hidden`.

    Raises:
        ContractError: the encoder gives no states of tokens.
    """

    encoder: TokenEncoder
    asked_for = "masked token"

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
        self.head = MaskedTokenHead(encoder.dim, encoder.word)

    def forward(self, batch: Batch) -> Output:
        """Ask for hidden tokens."""
        return self.judged(self.guesses(batch), batch)

    def guesses(self, batch: Batch) -> Guesses:
        """Encode, and guess hidden tokens."""
        states_BLD = self.encoder.hidden(batch.views[self.group][0], batch.segments[self.group])
        return self.guessed(states_BLD, batch)

    def guessed(self, states_BLD: Tensor, batch: Batch) -> Guesses:
        """Run the output layer on hidden tokens alone: a sixth of its work."""
        chosen = chosen_tokens(batch, "mlm")
        logits_NK = self.head(states_at(states_BLD, chosen.places_BS), self.encoder.word.weight)
        return Guesses(logits_NK, chosen.targets_N, chosen.weight)

    def judged(self, guesses: Guesses, batch: Batch) -> Output:
        """Compare guesses with what was hidden."""
        loss = mean_over_tokens(guesses.logits_NK, guesses.targets_N, weight=guesses.weight)
        hidden = (batch.targets["mlm"] != IGNORED).float().mean()
        right = accuracy(guesses.logits_NK, guesses.targets_N)
        return Output(loss, {"accuracy": right, "hidden": hidden}, guesses.weight)
