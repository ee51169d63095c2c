"""What methods on rows of two texts share: the guess from the row's first token."""

import torch
from torch import Tensor, nn

from ...encoders.tokens import start_bert


class PairHead(nn.Module):
    """BERT's pooler, a dense layer of tanh on the first token, and logits of two classes."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.pooler, self.classes = nn.Linear(dim, dim), nn.Linear(dim, 2)
        start_bert(self)

    def forward(self, states_BLD: Tensor) -> Tensor:
        """Give logits (B, 2)."""
        logits_BK: Tensor = self.classes(torch.tanh(self.pooler(states_BLD[:, 0])))
        return logits_BK
