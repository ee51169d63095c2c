"""Say when a run collapses or learns nothing, what was measured, and what usually causes it.

It reads the rows that are logged anyway, on the host: no kernel, no synchronisation. Each sign
must show in two readings, so a run is told within two epochs of its collapse. The features of an
encoder with batch norm may stay varied while the embeddings behind them are all alike.
"""

import math
from collections import deque
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from .log import Row

# Healthy short runs on CIFAR-10 stayed far from all of these; figures in tests/train/test_alarm.py
# and tests/train/test_collapse.py.
RANK = 2.0  # effective rank of features, 1 = all alike; collapsed ones had 1.0 to 2.4
# of SimSiam's embeddings: 1 = along a line, collapsed 1.05 to 1.25, whole 2.1 and more. Not BYOL's:
# its predictions begin at 1.1
DIRECTIONS = 1.3
SHARE = 0.2  # of the largest spread so far
CHANCE = 0.02  # distance of the loss from that of outputs that tell nothing, as a share of it
ENTROPY = 0.1  # nats, of the mean output: 0 = one prototype takes all
INFORMATION = 0.01  # nats, of an output about its image
AGREEMENT = 0.98  # mean cosine of prediction and target: two views of an image differ by more
VARIANCE = 0.9  # VICReg's term: by so much standard deviations fall short of 1
READINGS = 2

SPREADS: Mapping[str, str] = MappingProxyType(
    {
        "feature_std": "the encoder's features",
        "embedding_std": "the embeddings that the loss compares",
        "prediction_std": "the predicted images",
    }
)
ABSOLUTE: Mapping[str, float] = MappingProxyType({"embedding_std": 1e-3})  # 0.004 at D = 65536
CAUSES: Mapping[tuple[str, ...], str] = MappingProxyType(
    {
        ("simclr", "moco", "nnclr", "clip"): (
            "a temperature that is too high (0.1 to 0.5 is usual), a learning rate that is too "
            "high or a warm-up that is too short, views that share nothing"
        ),
        ("byol", "simsiam"): (
            "a gradient that reaches the target (no stop-gradient), no predictor or one that "
            "learns too slowly, a target momentum that is too low, no batch norm in the heads, a "
            "learning rate that is too high"
        ),
        ("barlow", "vicreg"): (
            "an invariance term that outweighs those of variance and covariance, or a learning "
            "rate that is too high"
        ),
        ("dino", "ibot", "msn", "swav", "deepcluster"): (
            "no centring or Sinkhorn (one prototype takes all), a teacher temperature that is too "
            "high (all are alike), a teacher momentum that is too low, prototypes that learn too "
            "early, a learning rate that is too high, gradients that are not clipped"
        ),
        ("mae", "simmim", "beit", "ijepa", "data2vec"): (
            "targets that are not normalised, a teacher that takes gradients or moves too fast, a "
            "learning rate that is too high"
        ),
    }
)
OTHERWISE = (
    "a target that takes gradients (no stop-gradient), terms against collapse that weigh too "
    "little, a temperature, a momentum, or a learning rate that is too high"
)


class Reading(NamedTuple):
    """One sign, as one row shows it."""

    sign: str
    bad: bool
    said: str


class Alarm:
    """One per run; `method` is its name in the recipe, `chance_loss` its member if it has one.

    The loss may stand at chance during the warm-up of `warmup_epochs` and for one more epoch.
    """

    def __init__(self, method: str, *, chance_loss: float | None, warmup_epochs: float) -> None:
        self._causes = causes(method)
        self._chance, self._patience = chance_loss, warmup_epochs + 1
        self._largest: dict[str, float] = {}
        self._losses: deque[tuple[float, float]] = deque()  # (epoch, loss) of the last epoch
        self._seen: dict[str, int] = {}  # bad readings in a row of each sign
        self._shown: dict[str, float] = {}  # epoch in which each sign showed last

    def read(self, row: Row) -> list[str]:
        """Take a logged row; one message for each sign whose READINGS-th bad reading it is.

        A sign that flickers about its limit is told once; again after it was gone for an epoch.
        """
        messages, epoch = [], row["epoch"]
        finite = {name: value for name, value in row.items() if is_finite(value)}
        for sign, bad, said in self._readings(finite):
            self._seen[sign] = self._seen.get(sign, 0) + 1 if bad else 0
            if self._seen[sign] == READINGS and epoch - self._shown.get(sign, -math.inf) > 1:
                messages.append(f"epoch {epoch:.1f}: {said}. Usual causes: {self._causes}")
            if self._seen[sign] >= READINGS:
                self._shown[sign] = epoch
        return messages

    def _readings(self, row: Row) -> Iterator[Reading]:
        """All signs that a row can show."""
        if "feature_rankme" in row:
            yield rank_reading(row["feature_rankme"])
        if "embedding_rank" in row:
            yield direction_reading(row["embedding_rank"])
        if "agreement" in row:
            yield agreement_reading(row["agreement"])
        if "variance" in row:
            yield variance_reading(row["variance"])
        if "mean_entropy" in row:
            yield prototype_reading(row["mean_entropy"])
        if "mean_entropy" in row and "teacher_entropy" in row:
            yield teacher_reading(row["mean_entropy"] - row["teacher_entropy"])
        for name in SPREADS:
            if name in row:
                yield self._spread_reading(name, row[name])
        if self._chance is not None and "loss" in row:
            yield self._chance_reading(row["epoch"], row["loss"], self._chance)

    def _spread_reading(self, name: str, value: float) -> Reading:
        """A spread against the largest that the run has had."""
        largest = self._largest[name] = max(value, self._largest.get(name, 0.0))
        limit = max(SHARE * largest, ABSOLUTE.get(name, 0.0))
        said = (
            f"collapse: {SPREADS[name]} are nearly the same for all images "
            f"({name} = {value:.2g}, below {limit:.2g}; it was {largest:.2g})"
        )
        return Reading(name, value < limit, said)

    def _chance_reading(self, epoch: float, loss: float, chance: float) -> Reading:
        """The mean loss of the last epoch against that of outputs that tell nothing."""
        self._losses.append((epoch, loss))
        while self._losses[0][0] < epoch - 1:
            self._losses.popleft()
        mean = sum(value for _, value in self._losses) / len(self._losses)
        said = (
            f"the loss stays at chance: its mean over the last epoch is {mean:.4g}, within "
            f"{CHANCE:.0%} of the {chance:.4g} of outputs that tell nothing"
        )
        bad = epoch >= self._patience and abs(mean - chance) < CHANCE * chance
        return Reading("loss", bad, said)


def is_finite(value: float | None) -> bool:
    """Whether a number can be judged; in metrics.jsonl, non-finite ones are null."""
    return value is not None and math.isfinite(value)


def rank_reading(rank: float) -> Reading:
    """The effective rank of the features against that of equal ones, 1."""
    said = (
        f"collapse: the effective rank of the features is {rank:.2f}, below {RANK}; 1 = all alike"
    )
    return Reading("feature_rankme", rank < RANK, said)


def direction_reading(directions: float) -> Reading:
    """The directions in which embeddings vary against those of a line, 1."""
    said = (
        f"collapse: the embeddings vary along one direction only (embedding_rank = "
        f"{directions:.2f}, below {DIRECTIONS})"
    )
    return Reading("embedding_rank", directions < DIRECTIONS, said)


def agreement_reading(cosine: float) -> Reading:
    """The agreement of BYOL's and SimSiam's views: too good to be learned."""
    said = (
        f"collapse: prediction and target are nearly the same (agreement = {cosine:.3f}, a mean "
        f"cosine above {AGREEMENT}), as when all embeddings are alike"
    )
    return Reading("agreement", cosine > AGREEMENT, said)


def variance_reading(term: float) -> Reading:
    """VICReg's variance term against 1, its value at collapse.

    `embedding_std` cannot see embeddings that shrink in proportion: it normalises them.
    """
    said = (
        f"collapse: the embeddings shrink to a point (variance term = {term:.2f}, above "
        f"{VARIANCE}: standard deviations of about {1 - term:.2f} instead of 1)"
    )
    return Reading("variance", term > VARIANCE, said)


def prototype_reading(entropy: float) -> Reading:
    """The entropy of the mean output, in nats, against 0: one prototype takes all."""
    said = (
        f"collapse: one prototype takes nearly all images (mean_entropy = {entropy:.2g} nats, "
        f"below {ENTROPY})"
    )
    return Reading("mean_entropy", entropy < ENTROPY, said)


def teacher_reading(information: float) -> Reading:
    """What the teacher's outputs tell of the image, in nats, against 0: all are alike."""
    said = (
        "collapse: the teacher gives nearly the same output for all images (mean_entropy - "
        f"teacher_entropy = {information:.2g} nats, below {INFORMATION})"
    )
    return Reading("teacher_entropy", information < INFORMATION, said)


def causes(method: str) -> str:
    """What usually makes a method collapse, by its family."""
    for names, said in CAUSES.items():
        if method.startswith(names):
            return said
    return OTHERWISE
