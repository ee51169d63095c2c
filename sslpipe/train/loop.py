"""The reference loop: batches in, weights, numbers and checkpoints out.

A step is an optimizer step, of `accumulate` batches; it has its number once it is done, from 1.
A run that is killed and resumed gives the weights of one that was not: all that changes is the
step, the position in the stream and the states of method, optimizer and scaler, which are in the
checkpoint. Everything else, rates and dropout included, is a function of the step.
"""

from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from ..batch import Batch
from ..device.handoff import find_device
from ..encoders import build_encoder
from ..errors import RecipeError
from ..memory import check_memory, raise_file_limit
from ..methods import Method, Output
from ..methods.method import check_output
from ..pipeline import Pipeline, load
from ..process import short_turns
from ..recipe import Recipe
from ..recipe.schema import TrainSection
from ..stream.open_source import Shards
from .accumulation import detached, divide_by_weights, loss_share, step_batches
from .checkpoint import LAST
from .clipping import clip
from .log import LoggedRow
from .monitoring import Monitor
from .optimizers import set_rates
from .record import Every, Guard, RunRecord
from .replicas import reduction
from .report import Bar, Reporter, Silent
from .run import TrainRun, check_length, encoded_view, initial_method, prepare_run
from .saving import check_folder, check_resumed, restore_run
from .schedules import ended_epoch
from .warm_start import check_library, is_of_library, read_weights
from .world import StopRequest, keyed, rank_device, start_world, stop_requests

EVERY = Every()
SILENT = Silent()


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run came to: steps done out of `total`, its last row, its checkpoint, its alarms."""

    steps: int
    total: int
    metrics: LoggedRow
    checkpoint: Path
    alarms: tuple[str, ...]  # messages that the run collapses or learns nothing; see alarm.py
    stopped_by: int = 0  # the number of the signal that ended it before its time; 0: none


def train(
    pipeline: Pipeline,
    method: Method,
    settings: TrainSection,
    *,
    out: Path,
    resume: bool = False,
    start: dict[str, str] | None = None,
    progress: Reporter = SILENT,
    max_steps: int | None = None,
    every: Every = EVERY,
    monitor: Monitor | None = None,
) -> TrainResult:
    """Train `method` from the start, or with `resume` from `out/last.pt`.

    `start` tells which weights the method has (WarmStart.record): checkpoints keep it, and a run is
    resumed with no others.
    With `max_steps` the run stops there, at the rates of the full run, and can be resumed.
    On SIGTERM or Ctrl-C it finishes the step, saves and returns; the result tells the signal.

    `monitor` evaluates the encoder at ends of epochs; the weights that it finds best are kept in
    `out/best.pt`. It changes no weight of the run.

    Raises:
        RecipeError: unknown optimizer or setting, or fp16 without CUDA; train.monitor, but nothing
            that evaluates.
        StateError: `out` holds another run, or nothing that can be resumed.
        SslpipeError: the loss is not finite; no process group; `monitor` cannot evaluate.
    """
    last = out / LAST
    check_monitored(pipeline.recipe, settings, monitor)
    check_folder(last, resume=resume)
    run = prepare_run(pipeline, method, settings, start)
    run, begun = restore_run(run, last) if resume else (run, 0)
    total = run.plan.total
    end = total if max_steps is None else min(max_steps, total)
    show = progress if pipeline.rank == 0 else SILENT
    with ExitStack() as stack:
        asked = stack.enter_context(stop_requests())
        stack.enter_context(short_turns())
        if pipeline.rank == 0:
            stack.callback(show.close)
        record = RunRecord(run, out, begun, every, show, stack, monitor)
        batches = stack.enter_context(closing(endless(pipeline)))
        show.start(begun, end)
        step, row, stop = take_steps(run, batches, record, begun, end, asked)
        show.message(record.farewell(step, begun=begun, end=end))
    return TrainResult(step, total, row, last, tuple(record.alarms), stop)


def take_steps(
    run: TrainRun,
    batches: Iterator[Batch],
    record: RunRecord,
    step: int,
    end: int,
    asked: StopRequest,
) -> tuple[int, LoggedRow, int]:
    """Take steps after `step` done ones, up to `end` or until a rank is asked to stop.

    Returns the steps done, the last row, and the signal that ended it; 0: none did.
    """
    row: LoggedRow = {}
    stop, done = 0, step >= end
    while not done:
        with record.starvation.resting(step):
            outputs, batch = optimizer_step(run, batches, step, record.guard)
        step += 1
        record.show_step(step)
        stop = 0 if step == end else stop_agreed(run, asked.signal, step, record.every.log)
        done = step == end or stop > 0
        if done or record.due(step):
            row = record.row(step, outputs, batch)
        epoch = ended_epoch(step, accumulate=run.settings.accumulate, length=len(run.pipeline))
        if done or step % record.every.save == 0 or epoch:
            record.checkpoint(step, epoch=epoch)
    return step, row, stop


def train_recipe(
    recipe: Recipe,
    *,
    shards: Shards,
    out: Path,
    resume: bool,
    start: str | Path | None = None,
    max_steps: int | None,
    device: str | None,
    monitor: Monitor | None = None,
) -> TrainResult:
    """Make a run in the folder `out` of a recipe and shards, as `sslpipe train` does.

    This process is one rank of torchrun's, if that started it. `start`: what the encoder's weights
    are read from, as `warm_start.read_weights` takes it; None: they are random.

    Raises:
        RecipeError: the recipe has no method or train section, or one that does not suit; or its
            data does not fit in memory.
        StateError: `out` holds another run, or `start` no weights of such a backbone.
        SslpipeError: this machine has no such device.
    """
    if recipe.train is None:
        raise RecipeError(f"{recipe.path}: no train section; add one (see pipelines/README.md)")
    kind, bad = str(find_device(device)), out / "quarantine.jsonl"
    check_folder(out / LAST, resume=resume)
    if resume:
        check_resumed(out / LAST, recipe)
    raise_file_limit()
    warm = None if start is None or is_of_library(start) else read_weights(start)
    with (
        start_world(kind) as world,
        load(
            recipe, shards=shards, device=rank_device(world, kind), quarantine=bad,
            epochs=recipe.train.epochs,
        ) as pipeline,
    ):  # fmt: skip
        check_length(recipe.train, len(pipeline), recipe.where("train", "accumulate"))
        bar = Bar()
        show = bar if pipeline.rank == 0 else SILENT
        if start is not None and warm is None:
            check_library(start, build_encoder(recipe.train.backbone, encoded_view(pipeline.spec)))
            warm = read_weights(start)
        method = initial_method(recipe, pipeline.spec, warm, show.message)
        for text in check_memory(pipeline, method).told:
            show.message(text)
        return train(
            pipeline, method, recipe.train, out=out, resume=resume, progress=bar,
            start=warm.record if warm else None, max_steps=max_steps, monitor=monitor,
        )  # fmt: skip


def check_monitored(recipe: Recipe, settings: TrainSection, monitor: Monitor | None) -> None:
    """Make sure that what a recipe wants evaluated is.

    Raises:
        RecipeError: nothing evaluates.
    """
    if settings.monitor and monitor is None:
        raise RecipeError(
            f"{recipe.where('train', 'monitor')}: train.monitor is set, but nothing evaluates; "
            "pass monitor= (sslpipe.evaluate.during_training.monitor_of), or take train.monitor out"
        )


def endless(pipeline: Pipeline) -> Generator[Batch]:
    """Yield the batches of this epoch, the next, and so on; take none before it is asked for."""
    while True:
        yield from pipeline


def optimizer_step(
    run: TrainRun, batches: Iterator[Batch], step: int, guard: Guard
) -> tuple[list[Output], Batch]:
    """Take one optimizer step after `step` done ones, without waiting (fp16 does, once).

    Returns the outputs of its batches and the last batch.
    """
    count, plan = run.settings.accumulate, run.plan
    set_rates(run.optimizer, lr=plan.lr_at(step), weight_decay=plan.weight_decay_at(step))
    run.optimizer.zero_grad()
    outputs: list[Output] = []
    seed, rank = run.recipe.stream.seed, run.pipeline.rank
    taken, totals = step_batches(run.method, batches, count)
    with keyed("step", seed=seed, step=step, rank=rank, device=run.device):
        for index, batch in enumerate(taken):
            with reduction(run.replica, last=index == count - 1):
                output = run.forward(batch)
                check_output(run.method, output)
                share = loss_share(output, [*outputs, output], count, totals)
                run.scaler.scale(share).backward()  # type: ignore[no-untyped-call]
            guard.watch(step + 1, output.loss, batch.keys)
            outputs.append(detached(output))
        if totals is None:
            divide_by_weights(run.method, outputs)
        clip(run.clipped, run.settings, run.optimizer, run.scaler)
        # a step that the fp16 scaler skips still counts: the run has a fixed length
        run.scaler.step(run.optimizer)
        run.scaler.update()
        run.method.after_step((step + 1) / plan.total)
    return outputs, batch


def stop_agreed(run: TrainRun, asked: int, step: int, log_every: int) -> int:
    """Tell the signal by which any rank was asked to stop, so that all stop at the same step.

    Ranks confer at logged steps only, where they wait for each other anyway.
    """
    if run.pipeline.world_size == 1:
        return asked
    if step % log_every:
        return 0
    votes = torch.tensor(asked, device=run.device)
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return int(votes)
