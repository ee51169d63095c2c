"""HuBERT: guess the labels of hidden frames, which are clusters of cepstra or of a model's states.

Hsu et al. 2021, arXiv:2106.07447, section 3; fairseq, models/hubert/hubert.py and
criterions/hubert_criterion.py. The labels are a target of the batch (`sslpipe frame-labels`).
Letters: N frames, K classes, C channels of the convolutions.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import IGNORED, Batch, BatchSpec
from ..encoders.wav2vec2 import Wav2Vec2Encoder
from ..errors import ContractError
from .method import Method, Numbers, Output, Sign
from .parts.checks import check_axes, not_negative, positive
from .parts.heads import at_least_fp32
from .parts.tokens import at_least_one, tokens_a_rank
from .parts.waves import check_frames, conv_features, of_waves, real_frames

TARGET = "frame_labels"


def cosine_logits(pred_BND: Tensor, class_KD: Tensor, *, temperature: float) -> Tensor:
    """Eq. 3: cosines of predictions with the embedding of each class, by temperature; (B, N, K)."""
    with torch.autocast(pred_BND.device.type, enabled=False):
        pred_BND, class_KD = (
            F.normalize(at_least_fp32(x), dim=-1, eps=1e-8) for x in (pred_BND, class_KD)
        )
        return pred_BND @ class_KD.mT / temperature


def hubert_loss(
    logits_BNK: Tensor,
    labels_BN: Tensor,
    hidden_BN: Tensor,
    *,
    shown_weight: float = 0.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Eq. 2: cross entropy of the labels, averaged over the frames of all ranks that are asked for.

    labels int64, IGNORED: not asked for. The hidden frames count 1, the others `shown_weight`; as
    officially, the sum is divided by their number, which leaves out the shown ones where that is
    0. `weight`: what `tokens_a_rank` says of those that are asked for, where it is known already.
    """
    check_axes("hubert_loss", logits_BNK=logits_BNK, labels_BN=labels_BN, hidden_BN=hidden_BN)
    with torch.autocast(logits_BNK.device.type, enabled=False):
        error_BN = F.cross_entropy(
            at_least_fp32(logits_BNK).mT, labels_BN, ignore_index=IGNORED, reduction="none"
        )
        total = (error_BN * torch.where(hidden_BN, 1.0, shown_weight)).sum()
    if weight is None:
        weight = tokens_a_rank(asked_frames(labels_BN, hidden_BN, shown_weight))
    return total / at_least_one(weight)


def asked_frames(labels_BN: Tensor, hidden_BN: Tensor, shown_weight: float) -> Tensor:
    """Which frames count in the loss, (B, N) bool."""
    known_BN = labels_BN != IGNORED
    return known_BN if shown_weight else known_BN & hidden_BN


def one_class(row: Numbers, _: Numbers) -> Sign | None:
    """Judge how many classes are guessed at all."""
    if "guessed_classes" not in row:
        return None
    used = row["guessed_classes"]
    said = f"collapse: all frames are held to be of one class (guessed_classes = {used:.2f})"
    return Sign("guessed_classes", used < 1.2, said)


class HuBERT(Method):
    """Needs waveforms, one mask 'spans' over their frames, targets 'frame_labels'; uses view 0.

    dim: of the embeddings of classes. shown_weight: of the frames that are not hidden; officially
    0 or 1. feature_grad: of the gradient that reaches the convolutions. penalty_weight: of the mean
    square of their features, before the norm. Padding (Batch.lengths) is neither asked for nor
    attended to.

    `chance_loss` is of eq. 2 alone, for labels that are equally frequent.
    Metrics: `entropy` of eq. 2; `accuracy` of hidden and `accuracy_shown` of other frames;
    `guessed_classes`, the perplexity of the guesses.
    """

    encoder: Wav2Vec2Encoder
    collapse_signs = (one_class,)
    collapse_causes = (
        "labels of which nearly all are alike (look at the count that frame-labels prints), a "
        "learning rate that is too high, a warm-up that is too short, no penalty on the features"
    )

    def __init__(
        self,
        encoder: nn.Module,
        spec: BatchSpec,
        *,
        dim: int = 256,
        temperature: float = 0.1,
        shown_weight: float = 0.0,
        penalty_weight: float = 10.0,
        feature_grad: float = 0.1,
    ) -> None:
        super().__init__()
        positive(dim=dim, temperature=temperature)
        not_negative(shown_weight=shown_weight, penalty_weight=penalty_weight,
                     feature_grad=feature_grad)  # fmt: skip
        spec.require("hubert", views={}, masks=("spans",), targets=(TARGET,))
        self.encoder, self.mask = of_waves("hubert", encoder), spec.masks["spans"]
        check_frames("hubert", self.encoder, spec, self.mask)
        classes = label_classes(spec)
        self.temperature, self.shown_weight = temperature, shown_weight
        self.penalty_weight, self.feature_grad = penalty_weight, feature_grad
        self.chance_loss = math.log(classes)
        self.final_proj = nn.Linear(self.encoder.dim, dim)
        self.class_embeddings = nn.Parameter(torch.rand(classes, dim))  # officially U(0, 1), too

    def forward(self, batch: Batch) -> Output:
        """Hide frames from the transformer, and guess their labels from its states."""
        hidden_BN, real_BN = batch.masks["spans"][0], real_frames(self.encoder, batch, self.mask)
        waves_BT = batch.views[self.mask.view][0]
        features_BNC = conv_features(self.encoder, waves_BT, self.feature_grad)
        context_BND = self.encoder.context(
            self.encoder.normed(features_BNC), hidden_BN=hidden_BN, real_BN=real_BN
        )
        logits_BNK = cosine_logits(
            self.final_proj(context_BND), self.class_embeddings, temperature=self.temperature
        )
        labels_BN = batch.targets[TARGET][0]
        if real_BN is not None:
            labels_BN = labels_BN.masked_fill(~real_BN, IGNORED)
        penalty = at_least_fp32(features_BNC).square().mean()
        return self.judged(logits_BNK, labels_BN, hidden_BN, penalty)

    def judged(
        self, logits_BNK: Tensor, labels_BN: Tensor, hidden_BN: Tensor, penalty: Tensor
    ) -> Output:
        """Add up the terms, both over the frames that are asked for."""
        weight = tokens_a_rank(asked_frames(labels_BN, hidden_BN, self.shown_weight))
        entropy = hubert_loss(
            logits_BNK, labels_BN, hidden_BN, shown_weight=self.shown_weight, weight=weight
        )
        metrics = {
            "entropy": entropy.detach(),
            **guesses_right(logits_BNK, labels_BN, hidden_BN),
            "feature_square": penalty.detach(),
        }
        return Output(entropy + self.penalty_weight * penalty, metrics, weight)


@torch.no_grad()
def guesses_right(logits_BNK: Tensor, labels_BN: Tensor, hidden_BN: Tensor) -> dict[str, Tensor]:
    """How often guesses are right, and how many classes are guessed, of this rank's frames.

    Scalars: shares of hidden and of shown frames, and the perplexity of the guessed classes.
    """
    guess_BN, known_BN = logits_BNK.argmax(-1), labels_BN != IGNORED
    shares = [
        ((guess_BN == labels_BN) & part_BN).sum() / part_BN.sum().clamp_min(1)
        for part_BN in (known_BN & hidden_BN, known_BN & ~hidden_BN)
    ]
    counts_K = torch.zeros(logits_BNK.shape[-1], device=guess_BN.device)
    counts_K.scatter_add_(0, guess_BN.flatten(), known_BN.flatten().float())
    share_K = counts_K / counts_K.sum().clamp_min(1)
    perplexity = torch.special.entr(share_K).sum().exp()
    return {
        "accuracy": shares[0], "accuracy_shown": shares[1], "guessed_classes": perplexity,
    }  # fmt: skip


def label_classes(spec: BatchSpec) -> int:
    """How many classes the labels of frames have.

    Raises:
        ContractError: they are not of the frames that the mask covers.
    """
    mask, labels = spec.masks["spans"], spec.targets[TARGET]
    if labels.view != mask.view or labels.shape != mask.grid or labels.classes is None:
        raise ContractError(
            f"hubert: targets.{TARGET} is about {list(labels.shape)} frames of {labels.view!r}, "
            f"but masks.spans covers {list(mask.grid)} of {mask.view!r}; set mask: spans, and its "
            "view"
        )
    return labels.classes
