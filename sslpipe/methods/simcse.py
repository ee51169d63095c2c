"""SimCSE: a text agrees with itself under another dropout, against all other texts.

Gao et al. 2021, arXiv:2104.08821, section 3, and the official simcse/models.py: cl_forward, without
labels of entailment.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import Batch, BatchSpec
from ..encoders.text import BERT
from ..errors import ContractError
from .method import Method, Output
from .parts.checks import check_axes, positive
from .parts.collapse import CONTRASTIVE_CAUSES, embeddings_alike
from .parts.collectives import gather, own_places
from .parts.heads import at_least_fp32
from .parts.tokens import one_text_group
from .simclr import pair_monitors


def simcse_loss(z1_BD: Tensor, z2_BD: Tensor, *, temperature: float) -> Tensor:
    """Eq. 4: cross entropy of each text to its other pass, among the other passes of all ranks.

    One direction. Embeddings are L2-normalised inside. A deviation: officially no gradient comes
    from other ranks; here the mean over ranks, which DDP takes, is the loss of the joined batch,
    and so are the gradients.
    """
    check_axes("simcse_loss", z1_BD=z1_BD, z2_BD=z2_BD)
    with torch.autocast(z1_BD.device.type, enabled=False):
        z1_BD, z2_BD = (F.normalize(at_least_fp32(z), dim=1) for z in (z1_BD, z2_BD))
        logits_BX = z1_BD @ gather(z2_BD).T / temperature
        own_B = own_places(z1_BD)
        return F.cross_entropy(logits_BX, own_B)


class SimCSE(Method):
    """Needs a group of tokens and a bert with dropout, which is all that two passes differ by.

    A row is a text: its first token, `begin`, stands for it, and sees the row's first document
    (stream.rows: {packing: one}). Both passes are one forward pass of 2B rows; dropout follows
    torch's generator, which the trainer keys by seed, step and rank. The dense layer of tanh behind
    it goes after training. A deviation: the encoder that is kept pools the mean of tokens, unless
    asked otherwise, officially the first one.

    Raises:
        ContractError: the encoder is no bert, or has no dropout.
    """

    encoder: BERT
    collapse_signs = (embeddings_alike,)
    collapse_causes = CONTRASTIVE_CAUSES

    def __init__(self, encoder: nn.Module, spec: BatchSpec, *, temperature: float = 0.05) -> None:
        super().__init__()
        positive(temperature=temperature)
        self.group, self.temperature = one_text_group("simcse", spec), temperature
        if not isinstance(encoder, BERT) or not encoder.drop.p:
            raise ContractError(
                f"simcse: two passes of this {type(encoder).__name__} are the same, because it has "
                "no dropout; set train.backbone to {bert: {dropout: 0.1}}"
            )
        self.encoder = encoder
        self.chance_loss = math.log(spec.global_size)
        self.projector = nn.Sequential(nn.Linear(encoder.dim, encoder.dim), nn.Tanh())

    def forward(self, batch: Batch) -> Output:
        """Both passes stacked: dropout differs from row to row."""
        tokens_BL, segments_2BL = batch.views[self.group][0], batch.segments[self.group]
        twice = self.encoder.hidden(tokens_BL.repeat(2, 1), segments_2BL.repeat(1, 2, 1))
        z1_BD, z2_BD = self.projector(twice[:, 0]).chunk(2)
        loss = simcse_loss(z1_BD, z2_BD, temperature=self.temperature)
        return Output(loss, pair_monitors(z1_BD, z2_BD))
