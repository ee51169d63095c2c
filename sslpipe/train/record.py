"""What a run writes down: rows and checkpoints. All ranks take part, the first one writes.

Both are guarded: a loss that is not finite is noticed before anything is written.
"""

import shutil
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..batch import Batch, whole_group
from ..encoders.monitors import monitor
from ..errors import SslpipeError
from ..methods import Output
from ..recipe.sections import recipe_text
from ..shards.side_files import replace_file, written_whole
from .accumulation import read_metrics
from .alarm import Alarm
from .checkpoint import LAST
from .log import JsonLines, LoggedRow, Meter, Sink, TensorBoard, hold_folder, rows_until
from .monitoring import Monitor, Watch
from .report import Reporter
from .run import TrainRun
from .saving import check_folder, remove_unnamed, save_parts, save_run
from .schedules import ended_epoch
from .starvation import Starvation

METRICS = "metrics.jsonl"


@dataclass(frozen=True, slots=True)
class Every:
    """How often, in steps (`keep`: in epochs, None: never). Nothing here changes the weights."""

    log: int = 10
    monitor: int = 100  # forward of at most 256 samples: below 1 % of the time at batch 256
    # and at the ends of epochs of more than `log` steps, so that a collapse is soon seen
    save: int = 1000  # besides every end of an epoch
    keep: int | None = None  # epoch-XXXX.pt beside last.pt


NEVER = 2**62


class Guard:
    """Remember on the device the first step whose loss was not finite.

    Reading the loss at every step would make the host wait for the device at every step. So the
    step number is kept there, in three tiny kernels, and read when metrics are read anyway and
    before a checkpoint is written: no checkpoint ever holds weights of after that step.
    """

    def __init__(self, device: torch.device) -> None:
        self._first = torch.full((), NEVER, dtype=torch.int64, device=device)
        self._keys: dict[int, list[str]] = {}

    def watch(self, step: int, loss: Tensor, keys: tuple[str, ...]) -> None:
        """Note one batch of a step; never waits."""
        self._keys.setdefault(step, []).extend(keys)
        worst = self._first.clamp(max=step)
        self._first = torch.where(loss.detach().isfinite(), self._first, worst)

    def check(self, world_size: int) -> None:
        """Wait for the device, and for all ranks: they stop together.

        Raises:
            SslpipeError: a loss was not finite.
        """
        if world_size > 1:
            dist.all_reduce(self._first, op=dist.ReduceOp.MIN)
        first = int(self._first)
        if first != NEVER:
            keys = self._keys.get(first, [])
            raise SslpipeError(
                f"step {first}: the loss is not finite; this rank's batch: {', '.join(keys[:8])}"
                f"{f' and {len(keys) - 8} more' if len(keys) > 8 else ''}. Lower the learning "
                "rate, lengthen the warm-up, set train.clip_norm, or train in bf16 or fp32; "
                "the last checkpoint is from before this step"
            )
        self._keys.clear()


class RunRecord:
    """Writes rows and checkpoints of one run from `step` on."""

    def __init__(
        self,
        run: TrainRun,
        out: Path,
        step: int,
        every: Every,
        show: Reporter,
        stack: ExitStack,
        evaluator: Monitor | None = None,
    ) -> None:
        settings, spec = run.settings, run.pipeline.spec
        self._run, self._out, self.every = run, out, every
        self._main = run.pipeline.rank == 0
        self._meter = Meter(
            run.pipeline, step=step, samples_per_step=spec.global_size * settings.accumulate
        )
        self.starvation, self._explained = Starvation(run, step), False
        rows = rows_until(out / METRICS, step) if step else []
        self._alarm = alarm_of(run, rows)
        self._show = show
        self._sinks = open_sinks(run, out, step, stack) if self._main else []
        self._watch = Watch(run, evaluator, out, rows, show) if evaluator else None
        self.alarms: list[str] = []  # of this process, on rank 0
        self.guard = Guard(run.device)
        if self._watch:
            self._begin(self._watch, step)

    def _begin(self, watch: Watch, step: int) -> None:
        """Write down what the monitor finds before the first step, if this is where the run is."""
        with self.starvation.left_out(), self._meter.left_out():
            encoder = self._run.whole_encoder()
            found = watch.begin(step, encoder) if self._main else {}
        for sink in self._sinks if found else ():
            sink.row({"step": step, "epoch": 0.0, **found})

    def due(self, step: int) -> bool:
        """Tell whether a row of this step is to be written."""
        return step % self.every.log == 0 or self._monitored(step) or self._evaluated(step)

    def _evaluated(self, step: int) -> bool:
        """Tell whether the row of this step has numbers on labelled data."""
        return self._watch is not None and self._watch.due(step)

    def _monitored(self, step: int) -> bool:
        """Tell whether the row of this step has monitors."""
        length, accumulate = len(self._run.pipeline), self._run.settings.accumulate
        ends = ended_epoch(step, accumulate=accumulate, length=length) is not None
        long = length > self.every.log * accumulate
        return step % self.every.monitor == 0 or (ends and long)

    def row(self, step: int, outputs: Sequence[Output], batch: Batch) -> LoggedRow:
        """Read the metrics of a step from the device and write them down.

        Raises:
            SslpipeError: the loss is not finite.
        """
        run = self._run
        self.guard.check(run.pipeline.world_size)
        speed = self._meter.read(step)
        row = {
            "step": step,
            "epoch": round(step * run.settings.accumulate / len(run.pipeline), 4),
            **read_metrics(outputs, run.pipeline.world_size),
            "lr": run.plan.lr_at(step - 1),
            "weight_decay": run.plan.weight_decay_at(step - 1),
            "replaced": run.pipeline.replaced,
            **speed,
            "data_lost": self.starvation.read(step, speed["data_wait"]),
        }
        if run.graphs is not None:
            row["recompiles"] = run.graphs.recompiles
        if self._monitored(step) or self._evaluated(step):
            row |= self._looked_at(step, row["epoch"], batch)
        self._explain()
        for sink in (*self._sinks, self._show):
            sink.row(row)
        for message in self._alarm.read(row) if self._main else ():
            self.alarms.append(message)
            self._show.message(message)
        return row

    def show_step(self, step: int) -> None:
        """Show that a step is done, and what there is to say of what it compiled."""
        self._show.step(step)
        said = self._run.graphs.message() if self._run.graphs else None
        if said:
            self._show.message(said)

    def _looked_at(self, step: int, epoch: float, batch: Batch) -> dict[str, float]:
        """What rank 0 finds of the encoder, which all ranks give it."""
        found: dict[str, float] = {}
        with self.starvation.left_out():
            encoder = self._run.whole_encoder()
            if self._main and self._monitored(step):
                found |= self._monitors(encoder, batch)
        if self._main and self._watch and self._watch.due(step):
            with self.starvation.left_out(), self._meter.left_out():
                found |= self._watch.read(step, epoch, encoder)
        return found

    def _explain(self) -> None:
        """Say once what the share means that is lost to data."""
        if self.starvation.own is not None and not self._explained:
            self._show.message(self.starvation.explanation())
            self._explained = True

    def _monitors(self, encoder: nn.Module, batch: Batch) -> dict[str, float]:
        """Compute label-free monitors on the first view of a batch."""
        images_BCHW = self._run.suited(batch).views[whole_group(batch.views)][0]
        with self._run.autocast():
            values = monitor(encoder, images_BCHW)
        return {name: value.item() for name, value in values.items()}

    def checkpoint(self, step: int, *, epoch: int | None) -> None:
        """Write last.pt; at the end of epoch `epoch`, counted from 1, keep a copy if asked to.

        Raises:
            SslpipeError: the loss is not finite; last.pt stays as it was.
        """
        self.guard.check(self._run.pipeline.world_size)
        with self.starvation.left_out():
            parts = save_parts(self._run, step, self._out)
            if self._main:
                self._write(step, epoch, parts)

    def _write(self, step: int, epoch: int | None, parts: dict[str, str] | None) -> None:
        last = self._out / LAST
        save_run(self._run, step, last, parts)
        if epoch is not None and self.every.keep and epoch % self.every.keep == 0:
            with written_whole(self._out / f"epoch-{epoch:04d}.pt") as part:
                shutil.copyfile(last, part)
        if self._watch:
            self._watch.keep(step)
        remove_unnamed(self._out)

    def farewell(self, step: int, *, begun: int, end: int) -> str:
        """Say how a run from step `begun`, to stop at `end`, ended at `step`, and how to go on."""
        last, total = self._out / LAST, self._run.plan.total
        best = self._watch.farewell if self._watch else ""
        if step == total:
            return f"finished {step} steps; checkpoint: {last}{best}"
        done = f"stopped after step {step} of {total} and saved {last}{best}"
        if step == begun:
            done = f"nothing to do up to step {end}: {last} holds step {step} of {total} already"
        if step < end:
            return f"{done}; go on with the same command and --resume"
        return f"{done}; go on with --resume and a larger --max-steps, or none"


def alarm_of(run: TrainRun, rows: Sequence[LoggedRow]) -> Alarm:
    """Make the alarm of a run that has logged `rows` already, which are not told again."""
    alarm = Alarm(run.method, warmup_epochs=run.settings.warmup_epochs)
    for row in rows:
        alarm.read(row)
    return alarm


def open_sinks(run: TrainRun, out: Path, step: int, stack: ExitStack) -> list[Sink]:
    """Open the files that take rows, closed by `stack`; also write the recipe beside them.

    Raises:
        StateError: another process trains there now, or did since we looked.
    """
    out.mkdir(parents=True, exist_ok=True)
    hold_folder(out, stack)
    check_folder(out / LAST, resume=step > 0)  # again: another may have trained there meanwhile
    replace_file(out / "recipe.yaml", recipe_text(run.recipe).encode())
    lines = stack.enter_context(closing(JsonLines(out / METRICS, step=step)))
    board = stack.enter_context(closing(TensorBoard(out, step=step)))
    return [lines, board]
