"""Numbers on labelled data while a run goes on: when they are taken, and which weights were best.

What evaluates is handed in, since this room knows neither labels nor protocols: a `Monitor`, such
as evaluate/during_training.py makes. It runs at ends of epochs on rank 0 alone, whose batch-norm
statistics are those of the checkpoint; the other ranks wait at their next exchange, so under NCCL a
set should take less than its ten minutes. It changes neither weights nor stream.

What is best is read back from metrics.jsonl, so a run that was killed knows it, too.
"""

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import nn

from ..errors import SslpipeError
from ..recipe.schema import MonitorSection
from ..shards.side_files import replace_file, written_whole
from .checkpoint import LAST
from .log import LoggedRow
from .report import Reporter
from .run import TrainRun
from .schedules import ended_epoch
from .world import keyed

BEST, NOTE = "best.pt", "monitor.txt"
VALUE, STEP = "eval/best", "eval/best_step"  # of the best evaluation so far


class Monitor(Protocol):
    """Evaluates an encoder on data of its own."""

    @property
    def settings(self) -> MonitorSection:
        """How often, and when to say that it gets no better."""
        ...

    @property
    def line(self) -> str:
        """What is measured, and on what: numbers under two different lines cannot be compared."""
        ...

    def __call__(self, encoder: nn.Module) -> Mapping[str, float]:
        """Numbers by name, more is better; the first one says which weights are best.

        The encoder is left as it was found, on its device.

        Raises:
            SslpipeError: it cannot be evaluated.
        """
        ...


class Watch:
    """Has one run evaluated from where it stands, `rows` behind it; all ranks know when."""

    def __init__(
        self, run: TrainRun, monitor: Monitor, out: Path, rows: Sequence[LoggedRow], show: Reporter
    ) -> None:
        self._run, self._monitor, self._out, self._show = run, monitor, out, show
        known = [row for row in rows if row.get(VALUE) is not None] if self._goes_on() else []
        self._best = known[-1][VALUE] if known else -math.inf
        self._best_step = int(known[-1][STEP]) if known else 0
        self._since = sum(row["step"] > self._best_step for row in known)

    def _goes_on(self) -> bool:
        """Tell whether what was measured before can be compared with what will be."""
        note = self._out / NOTE
        return note.exists() and note.read_text(encoding="utf-8").strip() == self._monitor.line

    def due(self, step: int) -> bool:
        """Tell whether the run is evaluated after `step` steps: where an epoch or the run ends."""
        run = self._run
        epoch = ended_epoch(step, accumulate=run.settings.accumulate, length=len(run.pipeline))
        often = epoch is not None and epoch % self._monitor.settings.every_epochs == 0
        return often or step == run.plan.total

    def begin(self, step: int, encoder: nn.Module) -> dict[str, float]:
        """Say what is measured, mend best.pt, and before the first step evaluate what is untrained.

        Raises:
            SslpipeError: it cannot be evaluated; better now than after an epoch.
        """
        compared = self._goes_on()
        replace_file(self._out / NOTE, f"{self._monitor.line}\n".encode())
        if step == 0:
            numbers = self._numbers(step, encoder)
            self._show.message(f"monitor: {self._monitor.line}; untrained: {words(numbers)}")
            return {f"eval/{name}": value for name, value in numbers.items()}
        self.keep(step)  # killed between last.pt and best.pt
        anew = "" if compared else "; another one than before, so the best is looked for anew"
        self._show.message(f"monitor: {self._monitor.line}{anew}")
        return {}

    def read(self, step: int, epoch: float, encoder: nn.Module) -> dict[str, float]:
        """Evaluate; the numbers of a row. What goes wrong is said, and training goes on."""
        try:
            numbers = self._numbers(step, encoder)
        except SslpipeError as error:
            self._show.message(f"epoch {epoch:.4g}: not evaluated, training goes on: {error}")
            return {}
        value = next(iter(numbers.values()))
        better = value > self._best
        if better:
            self._best, self._best_step, self._since = value, step, 0
        else:
            self._since += 1
        best = "the best so far" if better else f"best: {self._best:.3f} at step {self._best_step}"
        self._show.message(f"epoch {epoch:.4g}: {words(numbers)} ({best})")
        if self._since == self._monitor.settings.patience:
            self._show.message(self._advice(next(iter(numbers))))
        named = {f"eval/{name}": value for name, value in numbers.items()}
        return {**named, VALUE: self._best, STEP: self._best_step}

    def _numbers(self, step: int, encoder: nn.Module) -> dict[str, float]:
        """Evaluate the encoder that checkpoints hold, behind a fence of torch's generators."""
        run = self._run
        with keyed("monitor", seed=run.recipe.stream.seed, step=step, device=run.device):
            return dict(self._monitor(encoder))

    def _advice(self, name: str) -> str:
        """Say that it gets no better; whether to stop is the user's to decide."""
        return (
            f"monitor: {name} has not risen above {self._best:.3f} of step {self._best_step} for "
            f"{self._since} evaluations; {BEST} holds those weights. The run goes on; to end it "
            "press Ctrl-C, which saves"
        )

    def keep(self, step: int) -> None:
        """Copy last.pt, of `step`, to best.pt if it is the best: whole or not at all."""
        if step == self._best_step:
            with written_whole(self._out / BEST) as part:
                shutil.copyfile(self._out / LAST, part)

    @property
    def farewell(self) -> str:
        """Say what the best was, if anything was evaluated."""
        if not self._best_step:
            return ""
        return f"; best by the monitor: {self._best:.3f} at step {self._best_step}, {BEST}"


def words(numbers: Mapping[str, float]) -> str:
    """List numbers for people: `knn_top1 0.446`."""
    return ", ".join(f"{name} {value:.3f}" for name, value in numbers.items())
