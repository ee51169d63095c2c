"""The reference loop: batches in, weights, numbers and checkpoints out.

A step is an optimizer step, of `accumulate` batches; it has its number once it is done, from 1.
A run that is killed and resumed gives the weights of one that was not: all that changes is the
step, the position in the stream and the states of method, optimizer and scaler, which are in the
checkpoint. Everything else, rates and dropout included, is a function of the step.
"""

from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from ..batch import Batch
from ..errors import StateError
from ..methods import Method, Output
from ..pipeline import Pipeline
from ..recipe.schema import TrainSection
from .guard import Guard
from .log import Row
from .optimizers import clip_per_parameter, set_rates
from .randomness import keyed
from .record import Every, Record
from .report import Reporter, Silent
from .run import Run, prepare, restore
from .schedules import ended_epoch
from .signals import stop_requests

EVERY = Every()
SILENT = Silent()


@dataclass(frozen=True, slots=True)
class TrainResult:
    """Steps done out of `total`, the last logged row, the last checkpoint, what was alarming."""

    steps: int
    total: int
    metrics: Row
    checkpoint: Path
    alarms: tuple[str, ...]  # messages that the run collapses or learns nothing; see alarm.py


def train(
    pipeline: Pipeline,
    method: Method,
    settings: TrainSection,
    *,
    out: Path,
    resume: bool = False,
    progress: Reporter = SILENT,
    max_steps: int | None = None,
    every: Every = EVERY,
) -> TrainResult:
    """Train `method` from the start, or with `resume` from `out/last.pt`.

    With `max_steps` the run stops there, at the rates of the full run, and can be resumed.
    On SIGTERM or Ctrl-C it finishes the step, saves and returns.

    Raises:
        RecipeError: unknown optimizer or setting, or fp16 without CUDA.
        StateError: `out` holds another run, or nothing that can be resumed.
        SslpipeError: the loss is not finite; no process group.
    """
    last = out / "last.pt"
    check_folder(last, resume=resume)
    run = prepare(pipeline, method, settings)
    step = restore(run, last) if resume else 0
    total = run.plan.total
    end = total if max_steps is None else min(max_steps, total)
    show = progress if pipeline.rank == 0 else SILENT
    row: Row = {}
    with ExitStack() as stack:
        asked = stack.enter_context(stop_requests())
        record = Record(run, out, step, every, show, stack)
        batches = stack.enter_context(closing(endless(pipeline)))
        show.start(step, end)
        done = step >= end
        while not done:
            outputs, batch = optimizer_step(run, batches, step, record.guard)
            step += 1
            show.step(step)
            done = step == end or stop_agreed(run, asked.is_set(), step, every.log)
            if done or record.due(step):
                row = record.row(step, outputs, batch)
            epoch = ended_epoch(step, accumulate=settings.accumulate, length=len(pipeline))
            if done or step % every.save == 0 or epoch:
                record.checkpoint(step, epoch=epoch)
        show.message(farewell(run, step, out))
    return TrainResult(step, total, row, last, tuple(record.alarms))


def check_folder(last: Path, *, resume: bool) -> None:
    """A new run must not overwrite an old one.

    Raises:
        StateError: there is a checkpoint already.
    """
    if last.exists() and not resume:
        raise StateError(
            f"{last}: holds a run already; resume it (--resume), or choose another folder"
        )


def endless(pipeline: Pipeline) -> Generator[Batch]:
    """The batches of this epoch, the next, and so on; takes none before it is asked for."""
    while True:
        yield from pipeline


def optimizer_step(
    run: Run, batches: Iterator[Batch], step: int, guard: Guard
) -> tuple[list[Output], Batch]:
    """One optimizer step after `step` done ones; never waits for the device (fp16 does, once).

    Returns the outputs of its batches and the last batch.
    """
    count, plan = run.settings.accumulate, run.plan
    set_rates(run.optimizer, lr=plan.lr_at(step), weight_decay=plan.weight_decay_at(step))
    run.optimizer.zero_grad()
    outputs = []
    seed, rank = run.recipe.stream.seed, run.pipeline.rank
    with keyed("step", seed=seed, step=step, rank=rank, device=run.device):
        for index, batch in enumerate(islice(batches, count)):
            with run.reduction(last=index == count - 1):
                with run.autocast():
                    output: Output = run.replica(batch)
                run.scaler.scale(output.loss / count).backward()  # type: ignore[no-untyped-call]
            guard.watch(step + 1, output.loss, batch.keys)
            outputs.append(Output(output.loss.detach(), output.metrics))
        clip(run)
        # a step that the fp16 scaler skips still counts: the run has a fixed length
        run.scaler.step(run.optimizer)
        run.scaler.update()
        run.method.after_step((step + 1) / plan.total)
    return outputs, batch


def clip(run: Run) -> None:
    """Limit the gradients as the recipe says."""
    norm = run.settings.clip_norm
    if norm is None:
        return
    run.scaler.unscale_(run.optimizer)
    clip_gradients = (
        clip_per_parameter if run.settings.clip == "per_parameter" else nn.utils.clip_grad_norm_
    )
    for parameters in run.clipped:
        clip_gradients(parameters, norm)


def stop_agreed(run: Run, asked: bool, step: int, log_every: int) -> bool:
    """Whether any rank was asked to stop, so that all stop at the same step.

    Ranks confer at logged steps only, where they wait for each other anyway.
    """
    if run.pipeline.world_size == 1:
        return asked
    if step % log_every:
        return False
    votes = torch.tensor(int(asked), device=run.device)
    dist.all_reduce(votes)
    return bool(votes)


def farewell(run: Run, step: int, out: Path) -> str:
    """What to say at the end."""
    if step == run.plan.total:
        return f"finished {step} steps; checkpoint: {out / 'last.pt'}"
    return (
        f"stopped after step {step} of {run.plan.total} and saved {out / 'last.pt'}; "
        f"go on with the same command and --resume"
    )
