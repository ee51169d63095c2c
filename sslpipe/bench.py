"""Where does the time go? Samples/s of each stage alone, and of all together.

Each stage runs on its own inputs, made beforehand, after a warm-up: its rate is what it could do if
nothing else held it up. The step is measured on a batch at hand twice: alone, and while the
pipeline makes a batch for every step. `end to end` is what a training run gets. What they mean
together is in diagnosis.py.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from threading import Event, Semaphore
from typing import Any

import torch

from .batch import Batch
from .deciding import deciding, tables_of
from .device.handoff import send_groups, settle
from .diagnosis import NEVER, Stages, consistent
from .errors import RecipeError
from .memory import check_memory, raise_file_limit
from .modalities.crews import shares_ahead, shares_waiting
from .modalities.parts import advice, merged, tensors
from .pipeline import Pipeline, load
from .process import cores, short_turns
from .recipe import Recipe
from .stream.open_source import Shards
from .stream.source import Share
from .stream.tasks import READ
from .train import initial_method
from .train.loop import endless
from .train.run import TrainRun, prepare_run

Step = Callable[[Batch], None]
Tell = Callable[[str], None]


def tell_nobody(text: str) -> None:
    """Keep what is told to oneself."""


FEW = 4  # batches that tell how long samples are
LEFT_OUT = "memory: the method's step is left out, since it needs more than is free; to measure it"


@dataclass(frozen=True, slots=True)
class Timing:
    """Samples/s, seconds of CPU that this process took for each of them, and batches timed."""

    rate: float
    cpu: float
    batches: int


def measure(
    recipe: str | Path | Recipe,
    *,
    shards: Shards,
    device: str | None = None,
    seconds: float = 5.0,
    with_method: bool = True,
    say: Tell = tell_nobody,
    begin: Tell = tell_nobody,
) -> Stages:
    """Run every stage for about `seconds` each, and as long at most to warm up.

    A method for whose step memory is short is left out, as without `with_method`. say: is told
    that, and what memory is needed, before work begins. begin: is told each stage before it runs.

    Raises:
        RecipeError: the recipe has no method or train section, or its data does not fit in memory.
    """
    raise_file_limit()
    with short_turns(), load(recipe, shards=shards, device=device, rank=0, world_size=1) as pipe:
        run, memory = fitting_run(pipe, with_method, say)
        step = stepper(run) if run else None
        rates = alone(pipe, step, seconds, begin)
        begin("pipeline")
        pipeline = whole = together(pipe, ignore, seconds)
        rates["pipeline"] = pipeline.rate
        if step:
            begin("step beside the pipeline")
            batch = pipe.make_batch(pipe.load_share(0), 0)
            rates["step_beside"] = beside(pipe, step, batch, seconds)
            begin("end to end")
            whole = together(pipe, step, seconds)
        rates["end_to_end"] = whole.rate
        nothing = {"step": None, "step_beside": None}  # unless there is a method
        return Stages(
            **(nothing | consistent(rates)),
            cpu_us=pipeline.cpu * 1e6,
            memory=memory,
            batches=whole.batches,
            precision=pipe.recipe.train.precision if pipe.recipe.train and run else "",
            **costs(pipe),
        )


def fitting_run(pipe: Pipeline, with_method: bool, say: Tell) -> tuple[TrainRun | None, str]:
    """The recipe's method, ready to train, and what memory is needed; None: its step is left out.

    Raises:
        RecipeError: the recipe has no method or train section, or its data does not fit in memory.
    """
    run = ready_run(pipe) if with_method else None
    need = check_memory(pipe, run.method if run else None)
    left_out = run is not None and not need.fits
    for text in (need.line, f"{LEFT_OUT} set {need.remedy}") if left_out else need.told:
        say(text)
    return None if left_out else run, need.line


def costs(pipe: Pipeline) -> dict[str, Any]:
    """What stages say of a pipeline itself: its words, its hands, its advice."""
    return {
        "workers": pipe.workers,
        "ready": any(part.stored for part in pipe.parts),
        "threads": pipe.threads,
        "cores": cores(),
        "device": pipe.device.type,
        "scaled": pipe.summary,
        "unit": pipe.units.sample,
        "steps": pipe.units.steps,
        "steps_each": steps_each(pipe),
        "lighter": advice(pipe.recipe, pipe.parts, "decoding", device=pipe.device),
        "quicker": advice(pipe.recipe, pipe.parts, "making", device=pipe.device),
    }


def steps_each(pipe: Pipeline) -> float:
    """How many steps a sample has, on average over a few batches; 0: samples have none."""
    if not pipe.units.steps:
        return 0.0
    batches = [pipe.make_batch(pipe.load_share(step), step) for step in range(FEW)]
    counts = [float(lengths.sum()) for b in batches for lengths in b.lengths.values()]
    return sum(counts) / (FEW * pipe.spec.size)


def alone(
    pipe: Pipeline, step: Step | None, seconds: float, begin: Tell = tell_nobody
) -> dict[str, float]:
    """Samples/s of the stages one by one; the pipeline has not begun to work ahead."""
    rates: dict[str, float] = {}

    def run(name: str, work: Callable[[], object]) -> None:
        begin(name)
        rates[name] = timed(pipe, work, seconds).rate

    run("read", each_step(lambda step: pipe.loading.load_ahead(step, READ)))
    run("decode", each_step(pipe.loading.load_ahead))
    share = pipe.load_share(0)  # behind what was loaded ahead, so workers are idle from now on
    run("decide", each_step(deciding(pipe, share)))
    rates["copy"] = NEVER
    if pipe.device.type == "cuda":
        run("copy", lambda: copy(pipe, share))
    run("make", maker(pipe, share))
    run("augment", lambda: make(pipe, share))
    if step:
        batch = make(pipe, share)
        run("step", lambda: step(batch))
    return rates


def each_step(load: Callable[[int], object]) -> Callable[[], object]:
    """`load` of one step after the other."""
    steps = count()
    return lambda: load(next(steps))


def copy(pipe: Pipeline, share: Share) -> list[Any]:
    """The arrays of a share on the device."""
    with pipe.handoff.making():
        return [pipe.handoff.send_arrays(column.arrays) for column in share.columns]


def make(pipe: Pipeline, share: Share) -> Batch:
    """A batch of a share, as the pipeline makes it."""
    with pipe.handoff.making():
        batch = pipe.make_batch(share, 0)
        mark = pipe.handoff.mark()
    if mark is not None:
        pipe.handoff.receive(mark, batch.tensors)
    return batch


def maker(pipe: Pipeline, share: Share) -> Callable[[], object]:
    """What makes views of arrays and tables that are on the device already."""
    tables, arrays = tables_of(pipe, share, 0), copy(pipe, share)
    targets = tensors(merged(table.targets for table in tables))
    with pipe.handoff.making():
        (sent,) = send_groups(pipe.handoff.send, [*targets.values()])
    there = dict(zip(targets, sent, strict=True))

    def work() -> None:
        with pipe.handoff.making():
            for part, column, table in zip(pipe.parts, arrays, tables, strict=True):
                part.maker.make(column, table, there)

    return work


def together(pipe: Pipeline, step: Step, seconds: float) -> Timing:
    """Batches of the pipeline, and a step on each; warmed up by what it had made ahead."""
    batches = endless(pipe)
    return timed(pipe, lambda: step(next(batches)), seconds, warm=ahead_of(pipe))


def ahead_of(pipe: Pipeline) -> int:
    """How many batches the pipeline is ahead at most."""
    prefetch = pipe.recipe.run.prefetch
    return prefetch + shares_waiting(pipe.workers, prefetch) + shares_ahead(pipe.workers) + 1


def beside(pipe: Pipeline, step: Step, batch: Batch, seconds: float) -> float:
    """Samples/s of the step on a batch at hand, while the pipeline makes a batch for every step."""
    asked, ended = Semaphore(0), Event()

    def work() -> None:
        asked.release()
        step(batch)

    with ThreadPoolExecutor(1, thread_name_prefix="beside") as pool:
        taker: Future[None] = pool.submit(take, pipe, asked, ended)
        try:
            return timed(pipe, work, seconds, warm=ahead_of(pipe)).rate
        finally:
            ended.set()
            asked.release()
            taker.result()


def take(pipe: Pipeline, asked: Semaphore, ended: Event) -> None:
    """Take a batch whenever asked to, on a stream that no step waits for."""
    with other_stream(pipe.device):
        batches = endless(pipe)
        while asked.acquire() and not ended.is_set():
            next(batches)


def other_stream(device: torch.device) -> AbstractContextManager[Any]:
    """A stream of this thread's own."""
    if device.type != "cuda":
        return nullcontext()
    return torch.cuda.stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]


def timed(pipe: Pipeline, work: Callable[[], object], seconds: float, *, warm: int = 1) -> Timing:
    """Measure `work`, which does one batch, after `warm` calls or `seconds` of them."""
    start = time.perf_counter()
    for _ in range(warm):
        work()
        settle(pipe.device)
        if time.perf_counter() - start > seconds:
            break
    start, cpu, done = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < seconds:
        work()
        done += 1
    settle(pipe.device)
    samples = done * pipe.spec.size
    return Timing(
        samples / (time.perf_counter() - start),
        (time.process_time() - cpu) / max(samples, 1),
        done,
    )


def ready_run(pipe: Pipeline) -> TrainRun:
    """The recipe's method, ready to train.

    Raises:
        RecipeError: the recipe names no method or no train section.
    """
    if pipe.recipe.train is None:
        raise RecipeError(f"{pipe.recipe.path}: no train section; add one, or measure data only")
    return prepare_run(pipe, initial_method(pipe.recipe, pipe.spec), pipe.recipe.train)


def stepper(run: TrainRun) -> Step:
    """One optimizer step of a run on a batch."""

    def step(batch: Batch) -> None:
        run.optimizer.zero_grad()
        with run.autocast():
            loss = run.method(run.suited(batch)).loss
        loss.backward()
        run.optimizer.step()

    return step


def ignore(batch: Batch) -> None:
    """A trainer that does nothing."""
