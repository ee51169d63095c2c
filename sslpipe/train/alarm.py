"""Say when a run collapses or learns nothing, what was measured, and what usually causes it.

It reads the rows that are logged anyway, on the host: no kernel, no synchronisation. Each sign
must show in two readings, so a run is told within two epochs of its collapse. Signs of the encoder
are watched here; those of a method's metrics, and the usual causes, are the method's to say. The
features of an encoder with batch norm may stay varied while the embeddings behind them are all
alike.
"""

import math
from collections import deque
from collections.abc import Iterator

from ..methods import Method, Sign
from ..methods.method import Numbers
from ..methods.parts.collapse import spread_sign
from .log import LoggedRow

# Healthy short runs on CIFAR-10 stayed far from these; figures in tests/train/test_alarm.py and
# tests/train/test_collapse.py.
RANK = 2.0  # effective rank of features, 1 = all alike; collapsed ones had 1.0 to 2.4
CHANCE = 0.02  # distance of the loss from that of outputs that tell nothing, as a share of it
READINGS = 2


class Alarm:
    """Watch the rows of one run of `method`.

    The loss may stand at chance during the warm-up of `warmup_epochs` and for one more epoch.
    """

    def __init__(self, method: Method, *, warmup_epochs: float) -> None:
        self._method, self._patience = method, warmup_epochs + 1
        self._largest: dict[str, float] = {}  # value of each number so far
        self._losses: deque[tuple[float, float]] = deque()  # (epoch, loss) of the last epoch
        self._seen: dict[str, int] = {}  # bad readings in a row of each sign
        self._shown: dict[str, float] = {}  # epoch in which each sign showed last

    def read(self, row: LoggedRow) -> list[str]:
        """Take a logged row; one message for each sign whose READINGS-th bad reading it is.

        A sign that flickers about its limit is told once; again after it was gone for an epoch.
        """
        messages, epoch = [], row["epoch"]
        finite = {name: value for name, value in row.items() if is_finite(value)}
        for sign, bad, said in self._signs(finite):
            self._seen[sign] = self._seen.get(sign, 0) + 1 if bad else 0
            if self._seen[sign] == READINGS and epoch - self._shown.get(sign, -math.inf) > 1:
                causes = self._method.collapse_causes
                messages.append(f"epoch {epoch:.1f}: {said}. Usual causes: {causes}")
            if self._seen[sign] >= READINGS:
                self._shown[sign] = epoch
        return messages

    def _signs(self, row: Numbers) -> Iterator[Sign]:
        """Yield all signs that a row can show."""
        for name, value in row.items():
            self._largest[name] = max(value, self._largest.get(name, value))
        for watch in (features_alike, *self._method.collapse_signs):
            sign = watch(row, self._largest)
            if sign is not None:
                yield sign
        if "feature_rankme" in row:
            yield rank_sign(row["feature_rankme"])
        if self._method.chance_loss is not None and "loss" in row:
            yield self._chance_sign(row["epoch"], row["loss"], self._method.chance_loss)

    def _chance_sign(self, epoch: float, loss: float, chance: float) -> Sign:
        """Compare the mean loss of the last epoch with that of outputs that tell nothing."""
        self._losses.append((epoch, loss))
        while self._losses[0][0] < epoch - 1:
            self._losses.popleft()
        mean = sum(value for _, value in self._losses) / len(self._losses)
        said = (
            f"the loss stays at chance: its mean over the last epoch is {mean:.4g}, within "
            f"{CHANCE:.0%} of the {chance:.4g} of outputs that tell nothing"
        )
        bad = epoch >= self._patience and abs(mean - chance) < CHANCE * chance
        return Sign("loss", bad, said)


def is_finite(value: float | None) -> bool:
    """Tell whether a number can be judged; in metrics.jsonl, non-finite ones are null."""
    return value is not None and math.isfinite(value)


def rank_sign(rank: float) -> Sign:
    """Compare the effective rank of the features with that of equal ones, 1."""
    said = (
        f"collapse: the effective rank of the features is {rank:.2f}, below {RANK}; 1 = all alike"
    )
    return Sign("feature_rankme", rank < RANK, said)


def features_alike(row: Numbers, largest: Numbers) -> Sign | None:
    """Judge the spread of the encoder's features over samples; 0: they are one point."""
    return spread_sign("feature_std", "the encoder's features", row, largest)
