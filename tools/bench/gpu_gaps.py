"""Where a fed step loses time on a GPU: what its stream does, and how long it has nothing to do.

    python tools/bench/gpu_gaps.py RECIPE SHARDS [--steps 12] [--set run.workers=8]

Two rows, of steps on a batch at hand and of steps that the pipeline feeds:

images_per_s    without the profiler
next_ms         of a step in which the thread that steps waits for its batch
cpu_ms          of that thread: near step_ms, launching binds and not the GPU
threads_ms      CPU of all threads of the process, a step
span_ms         of a step on the GPU; for busy_ms of it kernels run on the step's stream, for
                idle_ms none does
side_ms         kernels of the pipeline's own stream, beside_ms of it beside kernels of the step
copy_ms         copies to the device
waits           the longest gaps of the step's stream: ms, kernels before and after it, and what
                of the gap the pipeline's stream and copies took
"""

import argparse
import json
import os
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import repeat
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

import torch

from sslpipe.batch import Batch
from sslpipe.bench import Step, ahead_of, make, ready_run, stepper
from sslpipe.pipeline import Pipeline, load
from sslpipe.process import TURN, short_turns
from sslpipe.recipe import find_recipe, load_recipe
from sslpipe.train.loop import endless

Kernel = tuple[int, int, str]  # when it begins and ends in ns, and its name
CUDA = torch.autograd.DeviceType.CUDA


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("recipe")
    options.add_argument("shards", type=Path)
    options.add_argument("--steps", type=int, default=12, help="that are profiled; 0: none")
    options.add_argument("--seconds", type=float, default=3.0)
    options.add_argument("--set", action="append", default=[], dest="sets")
    options.add_argument("--turn", type=float, default=TURN, help="seconds of Python's lock")
    chosen = options.parse_args()
    recipe = load_recipe(find_recipe(chosen.recipe), overrides=chosen.sets)
    said = {"recipe": chosen.recipe, "sets": chosen.sets, "turn": chosen.turn}
    with (
        short_turns(chosen.turn),
        load(recipe, shards=chosen.shards, device="cuda", rank=0, world_size=1) as pipe,
    ):
        step = stepper(ready_run(pipe))
        batch = make(pipe, pipe.load_share(0))
        feeds: dict[str, Iterator[Batch]] = {"at hand": repeat(batch), "fed": endless(pipe)}
        for name, batches in feeds.items():
            row = {"what": name, **said, "workers": pipe.workers}
            print(json.dumps({**row, **timed(pipe, step, batches, chosen.seconds)}), flush=True)
            if chosen.steps:
                print(json.dumps({**row, **on_device(step, batches, chosen.steps)}), flush=True)


def timed(pipe: Pipeline, step: Step, batches: Iterator[Batch], seconds: float) -> dict[str, Any]:
    """Steps without the profiler."""
    for _ in range(ahead_of(pipe)):
        step(next(batches))
    torch.cuda.synchronize()
    start, cpu, threads, waited, done = perf_counter(), thread_time(), thread_cpu(), 0.0, 0
    while perf_counter() - start < seconds:
        asked = perf_counter()
        batch = next(batches)
        waited += perf_counter() - asked
        step(batch)
        done += 1
    cpu, after = thread_time() - cpu, thread_cpu()
    torch.cuda.synchronize()
    took = perf_counter() - start
    used = {name: 1e3 * (spent - threads.get(name, 0.0)) / done for name, spent in after.items()}
    return {
        "images_per_s": done * pipe.spec.size / took,
        "step_ms": 1e3 * took / done,
        "next_ms": 1e3 * waited / done,
        "cpu_ms": 1e3 * cpu / done,
        "threads_ms": {name: round(ms, 2) for name, ms in used.items() if ms > 0.05},
    }


def thread_cpu() -> dict[str, float]:
    """Seconds of CPU of each thread of this process; those that are not Python's go by number."""
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    found, ticks = {}, os.sysconf("SC_CLK_TCK")
    for task in Path("/proc/self/task").iterdir():
        fields = (task / "stat").read_text().rsplit(")", 1)[1].split()
        name = names.get(int(task.name), "other")
        found[f"{name} {task.name}"] = (int(fields[11]) + int(fields[12])) / ticks
    return found


def on_device(step: Step, batches: Iterator[Batch], steps: int) -> dict[str, Any]:
    """The ms of a step, by stream."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        for _ in range(steps):
            step(next(batches))
        torch.cuda.synchronize()
    assert seen.profiler is not None
    streams: dict[int, list[Kernel]] = defaultdict(list)
    copies: list[Kernel] = []
    for event in seen.profiler.kineto_results.events():
        if event.device_type() == CUDA and event.duration_ns():
            kernel = event.start_ns(), event.start_ns() + event.duration_ns(), event.name()
            (copies if "HtoD" in kernel[2] else streams[event.device_resource_id()]).append(kernel)
    own = max(streams, key=lambda stream: length(streams[stream]))
    kernels, others = sorted(streams.pop(own)), merged(k for s in streams.values() for k in s)
    busy, crossing = merged(kernels), merged(copies)

    def ms(ns: float) -> float:
        return round(ns / 1e6 / steps, 3)

    return {
        "span_ms": ms(busy[-1][1] - busy[0][0]),
        "busy_ms": ms(length(busy)),
        "idle_ms": ms(busy[-1][1] - busy[0][0] - length(busy)),
        "side_ms": ms(length(others)),
        "beside_ms": ms(length(busy) + length(others) - length(merged([*busy, *others]))),
        "copy_ms": ms(length(crossing)),
        "waits": [wait for _, wait in sorted(waits(kernels, others, crossing), reverse=True)[:8]],
    }


def waits(
    kernels: list[Kernel], others: list[Kernel], copies: list[Kernel]
) -> Iterator[tuple[int, str]]:
    """The gaps between kernels, and what stands in them."""
    end, last = kernels[0][1], kernels[0][2]
    for begin, until, name in kernels:
        if begin > end:
            inside = [round(within(what, end, begin) / 1e6, 2) for what in (others, copies)]
            said = f"{(begin - end) / 1e6:.2f} ms: {last[:40]} | {name[:40]}; side, copy {inside}"
            yield begin - end, said
        if until > end:
            end, last = until, name


def within(intervals: list[Kernel], begin: int, end: int) -> int:
    return sum(max(0, min(b, end) - max(a, begin)) for a, b, _ in intervals)


def merged(intervals: Iterable[Kernel]) -> list[Kernel]:
    """The same time, without overlaps and in order."""
    found: list[Kernel] = []
    for begin, end, name in sorted(intervals):
        if found and begin <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1]), name
        else:
            found.append((begin, end, name))
    return found


def length(intervals: Iterable[Kernel]) -> int:
    return sum(end - begin for begin, end, _ in intervals)


if __name__ == "__main__":
    main()
