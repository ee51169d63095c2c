"""How much of the time is lost to data: more than waiting, since a starved step is slow, not idle.

A step that has its batch can still be held up by the pipeline's threads: by Python's lock, by
cores, by the device. So a few steps of a run are taken while the pipeline rests: it has made some
batches ahead, and begins no others. They are the steps of the run, on the same batches in the same
order, so nothing is computed otherwise. What later steps take beyond their time is lost to data.
On the device a rested step is waited for, so it is rather too long, and the share rather too small;
workers may still decode a share or two, which can only make it smaller yet.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import torch
import torch.distributed as dist

from ..device.handoff import settle
from ..stream.prefetch import is_rested
from .run import TrainRun

MANY = 5  # steps whose mean is no accident


class Starvation:
    """Measures steps at rest, and tells the share of time that others lose.

    step: how many are done.
    """

    def __init__(self, run: TrainRun, step: int) -> None:
        self._run, self._start = run, step
        self._own: list[float] = []  # seconds of the steps at rest
        self._best = float("inf")  # of steps beside the pipeline, which are no quicker than at rest
        self._left_out = 0.0  # seconds that are not a step's
        self._mark = (step, 0.0, 0.0)  # step, time, time left out

    @property
    def own(self) -> float | None:
        """Seconds of a step at rest; None: none was measured."""
        return min(median(self._own), self._best) if self._own else None

    @contextmanager
    def resting(self, step: int) -> Iterator[None]:
        """Take the step after `step` done ones, at rest if it is its turn."""
        taken = step - self._start
        run = self._run
        if not is_rested(taken) or run.pipeline.recipe.run.prefetch < run.settings.accumulate:
            yield
            return
        begin = time.perf_counter()
        with run.pipeline.resting() as ready:
            self._meet()
            start = time.perf_counter()
            yield
            settle(run.device)
            end = time.perf_counter()
        if ready >= run.settings.accumulate:
            if not self._own:
                self._mark = (step + 1, end, self._left_out + start - begin)
            self._own.append(end - start)
        self._left_out += start - begin

    def _meet(self) -> None:
        """Have all ranks begin at the same time, with nothing left to do."""
        if self._run.pipeline.world_size > 1:
            dist.all_reduce(torch.zeros((), device=self._run.device))
        settle(self._run.device)

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """Do what is no step, as writing a checkpoint."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._left_out += time.perf_counter() - start

    def read(self, step: int, waited: float) -> float:
        """The share since the last reading, at least what was `waited` of it."""
        if self.own is None:
            return waited
        now = (step, time.perf_counter(), self._left_out)
        steps, seconds, left_out = (new - old for new, old in zip(now, self._mark, strict=True))
        self._mark = now
        if steps <= 0:
            return waited
        busy = max(seconds - left_out, 1e-9)
        if steps >= MANY:
            self._best = min(self._best, busy * (1 - waited) / steps)
        lost = 1 - self.own * steps / busy
        return min(1.0, max(waited, lost))

    def explanation(self) -> str:
        """What the number means, in one line."""
        return (
            f"a step takes {self.own or 0:.3g} s with the pipeline at rest; lost to data: the "
            "share of time that steps take longer than that, waiting for batches, for Python's "
            "lock, for cores or for the device"
        )
