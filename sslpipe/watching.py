"""What data costs inside anyone's trainer: the share of time that is lost, what binds, advice.

```python
with sslpipe.watch(pipe) as watched:
    for batch in pipe:
        ...  # your step
print(watched.summary)  # shares of time, predicted samples/s
print(watched.verdict())  # measures the stages of the pipeline for a few seconds more
```

A step that has its batch can still be held up by the pipeline: by Python's lock, by cores, by the
device. So a few steps are taken while it rests, on batches that it has made ahead; what other steps
take beyond them is lost to data. No batch changes by it.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from statistics import median
from types import TracebackType
from typing import Self

from .device.handoff import settle
from .errors import RecipeError, SslpipeError
from .pipeline import Pipeline
from .stream.prefetch import is_rested


def watch(pipe: Pipeline, *, batches_per_step: int = 1) -> Watching:
    """Watching a pipeline between `with` and its end; one thread takes the batches.

    batches_per_step: of an accumulated step, all of which the trainer asks for before it begins.

    Raises:
        RecipeError: `run.prefetch` is below that, so that no step can be taken at rest.
    """
    return Watching(pipe, batches_per_step)


class Watching:
    """What was seen of a pipeline so far; `watch` makes it.

    Raises:
        RecipeError: a step takes no batch, or more than are made ahead.
    """

    def __init__(self, pipe: Pipeline, batches_per_step: int) -> None:
        if not 1 <= batches_per_step <= pipe.recipe.run.prefetch:
            where = pipe.recipe.where("run", "prefetch")
            raise RecipeError(
                f"{where}: watch: batches_per_step = {batches_per_step} with run.prefetch = "
                f"{pipe.recipe.run.prefetch}: steps at rest need their batches made ahead; "
                "raise run.prefetch"
            )
        self._pipe, self._each = pipe, batches_per_step
        self._own: list[float] = []  # seconds of the steps at rest
        self._busy = self._waiting = 0.0  # seconds of the other steps, and what of it was waited
        self._steps = self._taken = 0  # other steps; batches
        self._rest, self._resting = ExitStack(), False
        self._begun = self._asked_at = 0.0  # of this step; of this batch

    def __enter__(self) -> Self:
        self._pipe.observers.append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pipe.observers.remove(self)
        self._rest.close()

    def asked(self) -> None:
        """Close the step before, if its last batch was given."""
        now = time.perf_counter()
        if self._taken and self._taken % self._each == 0:
            now = self._end_step(now)
        self._asked_at = now

    def _end_step(self, now: float) -> float:
        if not self._resting:
            if self._taken > self._each:  # the first step makes much that is made once
                self._busy, self._steps = self._busy + now - self._begun, self._steps + 1
        else:
            settle(self._pipe.device)
            self._own.append(time.perf_counter() - self._begun)
            self._rest.close()
            self._resting = False
        self._begun = now = time.perf_counter()
        return now

    def given(self) -> None:
        """Let the pipeline rest, if it is the turn of the step that begins."""
        if not self._resting and self._taken >= self._each:
            self._waiting += time.perf_counter() - self._asked_at
        step, inside = divmod(self._taken, self._each)
        self._taken += 1
        if inside == 0 and is_rested(step):
            self._rest.enter_context(self._pipe.resting())
            settle(self._pipe.device)
            self._resting, self._begun = True, time.perf_counter()

    @property
    def waited(self) -> float:
        """The share of time that the trainer waited for batches."""
        return min(1.0, self._waiting / max(self._busy, 1e-9))

    @property
    def lost(self) -> float:
        """The share of time that steps took longer than at rest, waiting included.

        Raises:
            SslpipeError: fewer than ten steps were watched.
        """
        return min(1.0, max(self.waited, 1 - self._own_seconds * self._steps / self._busy))

    @property
    def rate(self) -> float:
        """Samples/s of this rank as it trains, data included."""
        return self._steps * self._each * self._pipe.spec.size / max(self._busy, 1e-9)

    @property
    def possible(self) -> float:
        """Samples/s if data cost no time."""
        return self._each * self._pipe.spec.size / self._own_seconds

    @property
    def _own_seconds(self) -> float:
        if not self._own or not self._steps:
            raise SslpipeError(
                f"watch: {self._taken // self._each} steps were taken; watch ten or more"
            )
        return min(median(self._own), self._busy / self._steps)

    @property
    def summary(self) -> str:
        """One sentence for people: shares of time that data costs, and samples/s."""
        return (
            f"lost to data {self.lost:.1%}, waiting for batches {self.waited:.1%}; "
            f"{self.rate:,.0f} {self._pipe.units.sample}s/s, {self.possible:,.0f} if data cost no "
            "time"
        )

    def verdict(self, seconds: float = 1.0) -> str:
        """Name what binds and what to change, as `sslpipe bench` does.

        Each stage of the pipeline is measured for about `seconds`; batches go on as they would.
        """
        # methods and trainer, which batches do not need
        from .bench import alone, costs, ignore, together
        from .diagnosis import Stages, consistent

        pipe, state = self._pipe, self._pipe.state_dict()
        rates = alone(pipe, None, seconds)
        pipeline = together(pipe, ignore, seconds)
        pipe.load_state_dict(state)
        beside = (self._busy - self._waiting) / (self._steps * self._each * pipe.spec.size)
        found = consistent({
            **rates, "pipeline": pipeline.rate, "step": self.possible, "step_beside": 1 / beside,
            "end_to_end": self.rate,
        })  # fmt: skip
        return Stages(**found, cpu_us=pipeline.cpu * 1e6, **costs(pipe)).verdict
