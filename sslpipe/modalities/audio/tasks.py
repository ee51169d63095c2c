"""Tasks on sound. The one there is chooses wav2vec 2.0's distractors: a table, no samples."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ...batch import MaskSpec, TargetSpec
from ...rng import Keys

I64 = npt.NDArray[np.int64]
MOST = 16_384  # hidden steps, of which a word can choose two: 7 minutes of wav2vec 2.0's frames


class SoundTask(Protocol):
    """Decides a target from the keys of samples alone."""

    def spec(self, view: str, masks: Mapping[str, MaskSpec]) -> TargetSpec:
        """What it asks for; a ValueError says why the masks of the recipe do not suit."""
        ...

    def draw(self, keys: Keys, stream: str, spec: TargetSpec) -> I64:
        """The target, (count, B, *shape)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Distractors:
    """For each hidden step, `count` others of the same utterance, with repeats (wav2vec 2.0, 3.2).

    The target is (1, B, M, K) int64 in [0, M): which of the M hidden steps of the mask, in their
    order; never the step itself. fairseq, models/wav2vec/wav2vec2.py, sample_negatives. Keyed by
    sample: officially the global generator of the process draws them.
    """

    count: int = 100
    mask: str = "spans"

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count = {self.count}; a step has one distractor or more")

    def spec(self, view: str, masks: Mapping[str, MaskSpec]) -> TargetSpec:
        """Ids of hidden steps."""
        if self.mask not in masks:
            raise ValueError(
                f"chooses among the steps that masks.{self.mask} hides, which this recipe has not; "
                "add it, or set mask to another one"
            )
        hidden = masks[self.mask].hidden
        if hidden is None or masks[self.mask].count != 1 or masks[self.mask].view != view:
            raise ValueError(
                f"needs one mask over {view!r} that hides the same number of steps in all samples; "
                f"masks.{self.mask} does not: set its view and count, and a sampler such as spans"
            )
        if hidden < 2:
            raise ValueError(f"masks.{self.mask} hides {hidden} step; others are needed, too")
        if hidden > MOST:
            raise ValueError(
                f"masks.{self.mask} hides {hidden:,} steps; {MOST:,} at most, by 32 bits"
            )
        return TargetSpec(view, 1, hidden, (hidden, self.count))

    def draw(self, keys: Keys, stream: str, spec: TargetSpec) -> I64:
        """Uniform over the others: one number less, moved past the step itself.

        A random word makes two of them, the first digits of a fraction in base M - 1, as all that
        is drawn here costs more than the rest of a batch; of 400 steps, one is more likely than
        another by 1 part in 26,000 at most.
        """
        steps, count = spec.shape
        base, pairs = np.uint64(steps - 1), -(-steps * count // 2)
        product = keys.words(stream, pairs) * base
        digits = np.stack([product, (product & np.uint64(0xFFFFFFFF)) * base], axis=-1)
        flat = (digits >> np.uint64(32)).astype(np.int64).reshape(1, len(keys.uids), -1)
        other = flat[..., : steps * count].reshape(1, -1, steps, count)
        return other + (other >= np.arange(steps)[:, None])


TASKS: Mapping[str, type[SoundTask]] = MappingProxyType({"distractors": Distractors})
