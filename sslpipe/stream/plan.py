"""Which samples make up global batch t of one corpus: a closed form of t, so a state is a step.

What happens where the samples of an epoch do not fill the last batch (`remainder`):

    wrap    they open the next epoch: every epoch is whole, batches may straddle, and then hold
            some samples twice; see `checks.check_repeats`
    drop    they are left out, others in every epoch; an epoch begins with a batch
    pad     samples of the epoch are repeated to fill the batch, and flagged as not valid
    short   the last batch is smaller; for one rank, since the others would wait
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import RecipeError, StateError
from ..shards.side_files import other_format

I64 = npt.NDArray[np.int64]
Remainder = Literal["wrap", "drop", "pad", "short"]


@dataclass(frozen=True, slots=True)
class Picks:
    """Samples of one batch: corpus and position in that corpus's own stream, three (n,) arrays."""

    corpora: I64
    positions: I64
    valid: npt.NDArray[np.bool_]  # False: a repeat that fills the batch

    def at(self, places: Sequence[int] | I64) -> "Picks":
        """The samples in some places of these, in the order that was asked for."""
        chosen = np.asarray(places, dtype=np.int64)
        return Picks(self.corpora[chosen], self.positions[chosen], self.valid[chosen])


class Plan(Protocol):
    """The samples of any batch."""

    size: int  # of a global batch

    def __len__(self) -> int:
        """Batches per epoch."""
        ...

    def __call__(self, step: int, slots: I64) -> Picks:
        """The samples in some slots of global batch `step`; slots are in [0, batch_size)."""
        ...


class RankSlots(Protocol):
    """Which slots of every batch are one rank's."""

    share: int  # how many

    def at(self, step: int) -> I64:
        """Those of a batch, ascending: (share,)."""
        ...


class FixedSlots:
    """The same ones of every batch."""

    def __init__(self, slots: I64) -> None:
        self._slots, self.share = slots, len(slots)

    def at(self, step: int) -> I64:
        """Give the same slots, whatever the step."""
        return self._slots


class Single:
    """Batches of one corpus of `samples` samples; `epoch_samples` may call another number an epoch.

    Raises:
        RecipeError: an epoch has no batch, or a length that its remainder does not allow.
    """

    def __init__(
        self,
        samples: int,
        *,
        batch_size: int,
        remainder: Remainder,
        epoch_samples: int | None = None,
    ) -> None:
        if remainder == "drop" and samples < batch_size:
            raise RecipeError(
                f"stream.remainder = 'drop': {samples} samples do not fill one batch of "
                f"{batch_size}; choose a smaller stream.batch_size, wrap or pad"
            )
        if epoch_samples and remainder != "wrap":
            raise RecipeError(
                f"stream.epoch_samples = {epoch_samples}: with stream.remainder = {remainder!r} "
                "an epoch is the corpus; leave epoch_samples out, or set remainder: wrap"
            )
        self.samples, self.size, self.remainder = samples, batch_size, remainder
        self._epoch = epoch_samples or samples

    def __len__(self) -> int:
        """Batches per epoch."""
        if self.remainder in ("pad", "short"):
            return math.ceil(self._epoch / self.size)
        return max(1, self._epoch // self.size)

    def __call__(self, step: int, slots: I64) -> Picks:
        """The samples in some slots of a batch."""
        if self.remainder == "wrap":
            return picked(step * self.size + slots, slots >= 0)
        epoch, batch = divmod(step, len(self))
        inside = batch * self.size + slots
        if self.remainder == "short":
            inside = inside[inside < self.samples]
        return picked(epoch * self.samples + inside % self.samples, inside < self.samples)


def picked(positions: I64, valid: npt.NDArray[np.bool_]) -> Picks:
    """Samples of the one corpus."""
    return Picks(np.zeros_like(positions), positions, valid)


def checked_step(state: Any, mine: dict[str, Any]) -> int:
    """The step of a state, which can be resumed if all else of it is what this stream's is.

    Raises:
        StateError: it is no state, or what differs, and how to go on.
    """
    step = state.get("step") if isinstance(state, dict) else None
    if type(step) is not int or not 0 <= step < 2**31:
        raise StateError(f"stream state: its step is {step!r}; pass what state_dict() returned")
    known, found = mine["version"], state.get("version")
    if isinstance(found, int) and found > known:
        raise StateError(f"stream state: {other_format(found, known, '')}")
    parts = {
        "version": "format",
        "manifest": "shards or their weights",
        "order": "order (kind, lanes, window, remainder)",
        "recipe": "recipe",
    }
    for name, what in parts.items():
        said = state.get(name)
        said = said if isinstance(said, str | int) else repr(said)
        if said != mine[name]:
            raise StateError(
                f"stream state: its {what} was {said!r}, this pipeline's is {mine[name]!r}; go on "
                "with what it was, or start a new run from the weights alone"
            )
    return step
