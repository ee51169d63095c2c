"""ELECTRA: a small generator guesses hidden tokens, the encoder tells which guesses are wrong.

Clark et al. 2020, arXiv:2003.10555, section 2, and the official run_pretraining.py. The encoder is
the discriminator; the generator goes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import IGNORED, Batch, BatchSpec
from ..encoders.text import BERT, BERTLayer, through_layers
from ..encoders.tokens import start_bert
from ..errors import ContractError
from .method import Method, Output
from .parts.checks import check_axes, not_negative, positive
from .parts.heads import at_least_fp32
from .parts.tokens import (
    MaskedTokenHead,
    accuracy,
    at_least_one,
    chosen_tokens,
    mean_over_tokens,
    one_text_group,
    states_at,
    tokens_a_rank,
)


def replaced_loss(
    scores_BL: Tensor, replaced_BL: Tensor, real_BL: Tensor, *, weight: Tensor | None = None
) -> Tensor:
    """Average the binary cross entropy over the real tokens of all ranks; a scalar.

    scores: above 0 where a token is held to be replaced; replaced_BL, real_BL: bool, False in
    real_BL: padding. The mean over ranks, which DDP takes, is the sum over all by their number.
    weight: what `tokens_a_rank` says of real_BL, where it is known already.
    """
    check_axes("replaced_loss", scores_BL=scores_BL, replaced_BL=replaced_BL, real_BL=real_BL)
    with torch.autocast(scores_BL.device.type, enabled=False):
        wide_BL = at_least_fp32(scores_BL)
        errors_BL = F.binary_cross_entropy_with_logits(
            wide_BL, replaced_BL.to(wide_BL.dtype), reduction="none"
        )
        count = tokens_a_rank(real_BL) if weight is None else weight
        return (errors_BL * real_BL).sum() / at_least_one(count)


def sampled(logits_NK: Tensor) -> Tensor:
    """Draw an id of each row by its softmax, (N,), without gradient.

    The largest of logits with Gumbel noise. The noise follows torch's generator, which the trainer
    keys by seed, step and rank.
    """
    wide_NK = at_least_fp32(logits_NK.detach())
    ids_N: Tensor = (wide_NK - torch.empty_like(wide_NK).exponential_().log()).argmax(1)
    return ids_N


class Generator(nn.Module):
    """A narrow BERT on the embeddings of the wide one, which both train; it drops as much."""

    def __init__(self, encoder: BERT, share: float) -> None:
        super().__init__()
        heads = max(1, round(share * encoder.heads))
        dim = max(1, round(share * encoder.dim / heads)) * heads
        self.project = nn.Linear(encoder.word.embedding_dim, dim)
        self.layers = nn.ModuleList(
            BERTLayer(dim, heads, dropout=encoder.drop.p) for _ in encoder.layers
        )
        self.head = MaskedTokenHead(dim, encoder.word)
        start_bert(self)

    def forward(self, embedded_BLD: Tensor, documents_BL: Tensor) -> Tensor:
        """Give the states of tokens, (B, L, d)."""
        return through_layers(self.layers, self.project(embedded_BLD), documents_BL)


class ELECTRA(Method):
    """Needs targets 'mlm', and a bert as backbone; officially the task keeps 15 % of what it hides.

    generator: its width and heads, of the encoder's; all layers. weight: of the encoder's loss,
    which is of all tokens, where the generator's is of hidden ones. Embeddings are shared whole:
    words, positions and their norm. A guess that is right by chance is not held to be replaced.
    Deviation: positions are hidden without replacement.
    Metrics: `accuracy` of the generator, the share of tokens that are `fakes`, and of those the
    share that is `found`.

    Raises:
        ContractError: the encoder is no bert.
    """

    encoder: BERT

    def __init__(
        self,
        encoder: nn.Module,
        spec: BatchSpec,
        *,
        generator: float = 0.25,
        weight: float = 50.0,
    ) -> None:
        super().__init__()
        spec.require("electra", views={}, targets=("mlm",))
        positive(generator=generator)
        not_negative(weight=weight)
        self.group, self.weight = one_text_group("electra", spec), weight
        if not isinstance(encoder, BERT):
            raise ContractError(
                f"electra: a {type(encoder).__name__} does not see both sides of a token by "
                "layers that a generator can copy; set train.backbone to bert"
            )
        self.encoder = encoder
        self.chance_loss = math.log(encoder.word.num_embeddings) + weight * math.log(2)
        self.generator = Generator(encoder, generator)
        self.head = nn.Sequential(
            nn.Linear(encoder.dim, encoder.dim), nn.GELU(), nn.Linear(encoder.dim, 1)
        )
        start_bert(self.head)

    def forward(self, batch: Batch) -> Output:
        """Guess hidden tokens, put the guesses there, and look for them."""
        tokens_BL, segments_2BL = batch.views[self.group][0], batch.segments[self.group]
        chosen = chosen_tokens(batch, "mlm")
        states_BLE = self.generator(self.encoder.embedded(tokens_BL, segments_2BL), segments_2BL[0])
        logits_NK = self.generator.head(
            states_at(states_BLE, chosen.places_BS), self.encoder.word.weight
        )
        weight_K = self.term_weights(batch)
        guessing = mean_over_tokens(logits_NK, chosen.targets_N, weight=weight_K[0])

        targets_BL, real_BL = batch.targets["mlm"][0], segments_2BL[0] >= 0
        original_BL = torch.where(targets_BL != IGNORED, targets_BL, tokens_BL)
        put_BS = sampled(logits_NK).view_as(chosen.places_BS)
        there_BS = original_BL.gather(1, chosen.places_BS)
        asked_BS = chosen.targets_N.view_as(put_BS) != IGNORED
        put_BL = original_BL.scatter(1, chosen.places_BS, torch.where(asked_BS, put_BS, there_BS))
        replaced_BL = put_BL != original_BL

        scores_BL = self.head(self.encoder.hidden(put_BL, segments_2BL))[..., 0]
        finding = replaced_loss(scores_BL, replaced_BL, real_BL, weight=weight_K[1])
        found = ((scores_BL > 0) & replaced_BL).sum() / replaced_BL.sum().clamp_min(1)
        metrics = {
            "accuracy": accuracy(logits_NK, chosen.targets_N),
            "fakes": replaced_BL.sum() / real_BL.sum().clamp_min(1),
            "found": found,
            "guessing": guessing.detach(),
            "finding": finding.detach(),
        }
        terms_K = torch.stack([guessing, self.weight * finding])
        return Output(terms_K.sum(), metrics, weight_K, terms_K)

    def term_weights(self, batch: Batch) -> Tensor:
        """Count hidden tokens and real ones, (2,)."""
        hidden_BL, real_BL = batch.targets["mlm"] != IGNORED, batch.segments[self.group][0] >= 0
        return torch.stack([tokens_a_rank(hidden_BL), tokens_a_rank(real_BL)])
