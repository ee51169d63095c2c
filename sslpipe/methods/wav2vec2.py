"""wav2vec 2.0: find the quantised features of a hidden frame among those of other hidden frames.

Baevski et al. 2020, arXiv:2006.11477, section 3; fairseq, models/wav2vec/wav2vec2.py,
modules/gumbel_vector_quantizer.py and criterions/wav2vec_criterion.py.
Letters: N frames, M hidden ones, K distractors of each, X = 1 + K choices, the right one first,
G codebooks of Q entries, C channels of the convolutions.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import Batch, BatchSpec, MaskSpec
from ..encoders.patches import take, visible_first
from ..encoders.wav2vec2 import Wav2Vec2Encoder
from ..errors import ContractError
from .method import Method, Numbers, Output, Sign
from .parts.checks import check_axes, not_negative, positive, shares
from .parts.collectives import joint_mean
from .parts.heads import at_least_fp32
from .parts.patches import hidden_patches
from .parts.quantizer import GumbelQuantizer, Quantised, code_perplexity, perplexity
from .parts.tokens import at_least_one, tokens_a_rank
from .parts.waves import check_frames, conv_features, of_waves, real_frames


def contrastive_logits(
    pred_BMD: Tensor,
    target_BMD: Tensor,
    codes_BMG: Tensor,
    distractors_BMK: Tensor,
    real_BM: Tensor,
    *,
    temperature: float,
) -> Tensor:
    """Eq. 3: cosines of predictions with their target, then with distractors; (B, M, X), fp32.

    Distractors, int64 in [0, M), are targets of the same utterance. Those of the target's own
    codes are left out (-inf), as officially, and so are those in padding (False in `real_BM`).
    """
    with torch.autocast(pred_BMD.device.type, enabled=False):
        pred_BMD, target_BMD = (
            F.normalize(at_least_fp32(x), dim=2) for x in (pred_BMD, target_BMD)
        )
        cosines_BMM = pred_BMD @ target_BMD.mT / temperature
        alike_BMM = (codes_BMG[:, :, None] == codes_BMG[:, None]).all(-1)
        others_BMM = cosines_BMM.masked_fill(alike_BMM | ~real_BM[:, None], -torch.inf)
        own_BM1 = cosines_BMM.diagonal(dim1=1, dim2=2)[..., None]
        return torch.cat([own_BM1, others_BMM.gather(2, distractors_BMK)], dim=2)


def wav2vec2_loss(logits_BMX: Tensor, real_BM: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """Eq. 3: cross entropy of the first choice, averaged over the hidden frames of all ranks.

    A sum, divided by their number, as officially. `weight`: what `tokens_a_rank` says of
    `real_BM`, where it is known already.
    """
    check_axes("wav2vec2_loss", logits_BMX=logits_BMX, real_BM=real_BM)
    with torch.autocast(logits_BMX.device.type, enabled=False):
        error_BM = -at_least_fp32(logits_BMX).log_softmax(-1)[..., 0]
        total = (error_BM * real_BM).sum()
    return total / at_least_one(tokens_a_rank(real_BM) if weight is None else weight)


def diversity_loss(logits_BMGQ: Tensor, real_BM: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """Eq. 4, as it is coded: the share of entries that the mean choice does not use, in [0, 1).

    (G Q - sum over books of exp H(mean softmax)) / (G Q), without Gumbel noise. Deviation: the
    mean is over the hidden frames of all ranks, officially of each rank.
    """
    check_axes("diversity_loss", logits_BMGQ=logits_BMGQ, real_BM=real_BM)
    with torch.autocast(logits_BMGQ.device.type, enabled=False):
        soft_BMGQ = at_least_fp32(logits_BMGQ).softmax(-1)
        total_GQ = joint_mean((soft_BMGQ * real_BM[..., None, None]).sum((0, 1)))
        mean_GQ = total_GQ / at_least_one(tokens_a_rank(real_BM) if weight is None else weight)
        entries = mean_GQ.numel()
        return (entries - perplexity(mean_GQ)) / entries


def few_codes(books: int, row: Numbers, _: Numbers) -> Sign | None:
    """Judge how many entries are chosen; as many as there are books: one of each takes all."""
    if "code_perplexity" not in row:
        return None
    used, limit = row["code_perplexity"], 1.5 * books
    said = (
        f"collapse: the quantiser chooses hardly more than one entry of each of its {books} books "
        f"(code_perplexity = {used:.2f}, below {limit:g})"
    )
    return Sign("code_perplexity", used < limit, said)


def always_right(row: Numbers, _: Numbers) -> Sign | None:
    """Judge whether the target is found too well: the features of an utterance are alike."""
    if "accuracy" not in row:
        return None
    said = (
        f"collapse: the right frame is always found (accuracy = {row['accuracy']:.4f}), as when "
        "all distractors have the target's codes, or frames tell their place and no sound"
    )
    return Sign("accuracy", row["accuracy"] > 0.995, said)


class Wav2Vec2(Method):
    """Needs waveforms, one mask 'spans' over their frames, targets 'distractors'; uses view 0.

    codebooks, entries: of the quantiser. dim: of what is compared; code_dim: of all books together.
    gumbel: temperature at first, at last, and its factor of each step. feature_grad: of the
    gradient that reaches the convolutions. penalty_weight: of the mean square of their features,
    before the norm (0 in the large model). dropout: of the features that are quantised.
    Padding (Batch.lengths) is neither asked for nor attended to; officially there is none. Masks
    that go by lengths (spans of `counts: real`) hide less of what is shorter.

    `chance_loss` is of eq. 3 alone, without the other two terms.
    Metrics: `code_perplexity`, entries in use of G Q; `accuracy` among K + 1; `contrast` of eq. 3.
    """

    encoder: Wav2Vec2Encoder
    steps: Tensor
    collapse_causes = (
        "codebooks that are not kept in use (diversity too low, a temperature that falls too fast, "
        "half precision in the quantiser), too little data or too small batches, a learning rate "
        "that is too high, a warm-up that is too short, no penalty on the features"
    )

    def __init__(
        self,
        encoder: nn.Module,
        spec: BatchSpec,
        *,
        codebooks: int = 2,
        entries: int = 320,
        dim: int = 256,
        code_dim: int = 256,
        temperature: float = 0.1,
        gumbel: tuple[float, float, float] = (2.0, 0.5, 0.999995),
        diversity_weight: float = 0.1,
        penalty_weight: float = 10.0,
        feature_grad: float = 0.1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        positive(codebooks=codebooks, entries=entries, dim=dim, code_dim=code_dim,
                 temperature=temperature, gumbel=gumbel)  # fmt: skip
        not_negative(diversity_weight=diversity_weight, penalty_weight=penalty_weight,
                     feature_grad=feature_grad)  # fmt: skip
        shares(dropout=dropout)
        if code_dim % codebooks:
            raise ValueError(
                f"code_dim = {code_dim} is no multiple of codebooks = {codebooks}; set one of them"
            )
        if gumbel[2] > 1:
            raise ValueError(f"gumbel = {gumbel}; set its last number, a factor, to 1 or less")
        spec.require("wav2vec2", views={}, masks=("spans",), targets=("distractors",))
        self.encoder, self.mask = of_waves("wav2vec2", encoder), spec.masks["spans"]
        self.hidden = self.mask.most or hidden_patches("wav2vec2", self.mask, "spans")
        check_frames("wav2vec2", self.encoder, spec, self.mask)
        check_distractors(spec, self.mask, self.hidden)
        self.temperature, self.gumbel = temperature, gumbel
        self.diversity_weight, self.penalty_weight = diversity_weight, penalty_weight
        self.feature_grad = feature_grad
        self.chance_loss = math.log(1 + spec.targets["distractors"].shape[1])
        self.collapse_signs = (partial(few_codes, codebooks), always_right)
        self.drop = nn.Dropout(dropout)
        self.quantizer = GumbelQuantizer(
            self.encoder.conv_dim, books=codebooks, entries=entries, dim=code_dim
        )
        self.project_q = nn.Linear(code_dim, dim)
        self.project_hid = nn.Linear(self.encoder.dim, dim)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @property
    def gumbel_temperature(self) -> Tensor:
        """Of this step: it falls by a factor each step, to a floor."""
        first, last, factor = self.gumbel
        return (first * factor**self.steps).clamp_min(last)

    def forward(self, batch: Batch) -> Output:
        """Hide frames from the transformer, and look for them among their quantised features."""
        hidden_BN, real_BN = batch.masks["spans"][0], real_frames(self.encoder, batch, self.mask)
        waves_BT = batch.views[self.mask.view][0]
        features_BNC = conv_features(self.encoder, waves_BT, self.feature_grad)
        normed_BNC = self.encoder.normed(features_BNC)
        places_BM = visible_first(~hidden_BN)[:, : self.hidden]
        asked_BN = hidden_BN if real_BN is None else hidden_BN & real_BN
        real_BM = asked_BN.gather(1, places_BM)  # the others fill up a row that hides fewer
        found = self.quantizer(self.drop(take(normed_BNC, places_BM)), self.gumbel_temperature)
        context_BND = self.encoder.context(normed_BNC, hidden_BN=hidden_BN, real_BN=real_BN)
        logits_BMX = contrastive_logits(
            self.project_hid(take(context_BND, places_BM)), self.project_q(found.vectors_BMD),
            found.codes_BMG, batch.targets["distractors"][0][:, : places_BM.shape[1]], real_BM,
            temperature=self.temperature,
        )  # fmt: skip
        return self.judged(logits_BMX, found, real_BM, at_least_fp32(features_BNC).square().mean())

    def judged(
        self, logits_BMX: Tensor, found: Quantised, real_BM: Tensor, penalty: Tensor
    ) -> Output:
        """Add up the terms: officially sums over hidden frames, by their number."""
        weight = tokens_a_rank(real_BM)
        contrast = wav2vec2_loss(logits_BMX, real_BM, weight=weight)
        diversity = diversity_loss(found.logits_BMGQ, real_BM, weight=weight)
        loss = contrast + self.diversity_weight * diversity + self.penalty_weight * penalty
        metrics = {
            "contrast": contrast.detach(),
            "accuracy": share_of_first(logits_BMX, real_BM),
            "code_perplexity": code_perplexity(found, real_BM),
            "feature_square": penalty.detach(),
        }
        return Output(loss, metrics, weight)

    def after_step(self, progress: float) -> None:
        """Count the step, of which the Gumbel temperature is a function."""
        self.steps += 1


@torch.no_grad()
def share_of_first(logits_BMX: Tensor, real_BM: Tensor) -> Tensor:
    """How often the first choice is the best one, of this rank's frames; a scalar in [0, 1]."""
    right_BM = (logits_BMX.argmax(-1) == 0) & real_BM
    return right_BM.sum() / real_BM.sum().clamp_min(1)


def check_distractors(spec: BatchSpec, mask: MaskSpec, hidden: int) -> None:
    """Raise a ContractError unless distractors are chosen among the steps that the mask hides."""
    choices = spec.targets["distractors"]
    if choices.view != mask.view or choices.shape[:1] != (hidden,):
        raise ContractError(
            f"wav2vec2: targets.distractors is about {choices.shape[0]} steps of {choices.view!r}, "
            f"but masks.spans hides {hidden} of {mask.view!r}; set mask: spans, and its view"
        )
