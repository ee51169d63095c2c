"""Learning rate and weight decay as pure functions of the optimizer step, counted from 0.

The end points are those of `cosine_scheduler` in facebookresearch/dino, utils.py: the warm-up
starts at 0 and includes its peak, which therefore stands twice (last warm-up step, first cosine
step); the cosine would reach its end one step after the last one, so the run ends just above it.
"""

import math
from dataclasses import dataclass


def cosine(step: int, *, total: int, start: float, end: float) -> float:
    """Half a cosine: exactly `start` at step 0, exactly `end` at step `total`."""
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * step / total))


def warmup_cosine(step: int, *, total: int, warmup: int, peak: float, final: float) -> float:
    """Linear from 0 to `peak` in `warmup` steps, then a cosine to `final` at step `total`."""
    assert 0 <= step < total
    if step < warmup:
        return peak * step / max(warmup - 1, 1)
    return cosine(step - warmup, total=total - warmup, start=peak, end=final)


def ended_epoch(step: int, *, accumulate: int, length: int) -> int | None:
    """The epoch of `length` batches, counted from 1, that optimizer step `step` completes.

    A step of several batches may straddle the end; the first step at or past it then counts.
    """
    before, after = (s * accumulate // length for s in (step - 1, step))
    return after if after > before else None


@dataclass(frozen=True, slots=True)
class Plan:
    """Every rate of a run of `total` optimizer steps; `final_weight_decay` None: constant."""

    total: int
    warmup: int
    lr: float
    final_lr: float
    weight_decay: float
    final_weight_decay: float | None

    def lr_at(self, step: int) -> float:
        """Learning rate of a step, before the scale of its parameter group."""
        return warmup_cosine(
            step, total=self.total, warmup=self.warmup, peak=self.lr, final=self.final_lr
        )

    def weight_decay_at(self, step: int) -> float:
        """Weight decay of a step; no warm-up, as in DINO."""
        if self.final_weight_decay is None:
            return self.weight_decay
        return cosine(step, total=self.total, start=self.weight_decay, end=self.final_weight_decay)
