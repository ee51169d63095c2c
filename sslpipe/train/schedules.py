"""Learning rate and weight decay as pure functions of the optimizer step, counted from 0.

The end points are those of `cosine_scheduler` in facebookresearch/dino, utils.py: the warm-up
starts at its start value and includes its peak, which therefore stands twice (last warm-up step,
first cosine step); the cosine would reach its end one step after the last one, so the run ends
just above it.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import Literal

Schedule = Literal["cosine", "cosine_per_epoch", "linear", "multistep"]


def cosine_rate(at: float, *, total: float, start: float, end: float) -> float:
    """Go by half a cosine: exactly `start` at 0, exactly `end` at `total`."""
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * at / total))


def linear_rate(at: float, *, total: float, start: float, end: float) -> float:
    """Go straight: exactly `start` at 0, exactly `end` at `total`."""
    return end + (start - end) * (1 - at / total)


def warmup(step: int, *, steps: int, start: float, peak: float) -> float:
    """Go straight: `start` at step 0, exactly `peak` at the last one, `steps - 1`."""
    return start + (peak - start) * step / max(steps - 1, 1)


def epochs_done(steps: int, *, accumulate: int, length: int) -> int:
    """Count the epochs of `length` batches that `steps` optimizer steps complete, in integers."""
    return steps * accumulate // length


def ended_epoch(step: int, *, accumulate: int, length: int) -> int | None:
    """Tell the epoch of `length` batches, counted from 1, that optimizer step `step` completes.

    A step of several batches may straddle the end; the first step at or past it then counts.
    """
    before, after = (epochs_done(s, accumulate=accumulate, length=length) for s in (step - 1, step))
    return after if after > before else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RatePlan:
    """Knows every rate of a run of `total` optimizer steps of `accumulate` batches.

    An epoch is `length` batches; a step belongs to the epoch in which its first batch lies.
    `final_lr` ends cosines and straight lines, which take `stretch` times the run and are cut off;
    `milestones` are the epochs from which a multistep rate is multiplied by `gamma` once more.
    `final_weight_decay` None: constant.
    """

    total: int
    length: int
    warmup: int
    lr: float
    weight_decay: float
    accumulate: int = 1
    schedule: Schedule = "cosine"
    stretch: float = 1.0
    warmup_lr: float = 0.0
    final_lr: float = 0.0
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    final_weight_decay: float | None = None

    def lr_at(self, step: int) -> float:
        """Give the learning rate of a step, before the scale of its parameter group."""
        assert 0 <= step < self.total
        if step < self.warmup:
            return warmup(step, steps=self.warmup, start=self.warmup_lr, peak=self.lr)
        epoch = epochs_done(step, accumulate=self.accumulate, length=self.length)
        if self.schedule == "multistep":
            return self.lr * self.gamma ** bisect_right(self.milestones, epoch)
        at: float = step
        if self.schedule == "cosine_per_epoch":  # MoCo, SimSiam: one rate for a whole epoch
            at = max(epoch * self.length / self.accumulate, self.warmup)
        total = self.stretch * self.total - self.warmup
        rate = linear_rate if self.schedule == "linear" else cosine_rate  # linear: BERT
        return rate(at - self.warmup, total=total, start=self.lr, end=self.final_lr)

    def weight_decay_at(self, step: int) -> float:
        """Give the weight decay of a step; there is no warm-up, as in DINO."""
        if self.final_weight_decay is None:
            return self.weight_decay
        total = self.stretch * self.total
        return cosine_rate(step, total=total, start=self.weight_decay, end=self.final_weight_decay)
