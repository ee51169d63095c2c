"""Where does the time go? Images/s of each stage alone, and of all together.

Each stage runs on its own inputs, made beforehand, so its rate is what it could do if nothing
else held it up; `end to end` is what a training run gets.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch

from .batch import Batch
from .errors import RecipeError
from .pipeline import Pipeline, canvas_decoder, load
from .recipe import Recipe
from .sources import Shards
from .stream.source import Decode
from .train import build_method
from .train.run import prepare


@dataclass(frozen=True, slots=True)
class Stages:
    """Images/s; `step` and `end_to_end` are None without a method."""

    read: float
    decode: float
    augment: float
    step: float | None
    end_to_end: float

    @property
    def verdict(self) -> str:
        """One sentence that names the bottleneck."""
        rates = {"reading": self.read, "decoding": self.decode, "augmentation": self.augment}
        if self.step is not None:
            rates["the method's step"] = self.step
        slowest = min(rates, key=lambda name: rates[name])
        share = self.end_to_end / rates[slowest]
        return (
            f"The bottleneck is {slowest} at {rates[slowest]:,.0f} images/s alone; the whole, "
            f"whose stages share the cores, runs at {self.end_to_end:,.0f} images/s, {share:.0%} "
            "of it."
        )


def measure(
    recipe: str | Path | Recipe,
    *,
    shards: Shards,
    device: str | None = None,
    seconds: float = 5.0,
    with_method: bool = True,
) -> Stages:
    """Run every stage for about `seconds` each."""
    with load(recipe, shards=shards, device=device, rank=0, world_size=1) as pipe:
        run = trainer(pipe) if with_method else None
        read = loading_rate(pipe, lambda sample, epoch: sample.data, seconds)
        decoded = loading_rate(pipe, canvas_decoder(pipe.recipe), seconds)
        share = pipe.load_share(0)
        augment = rate(pipe, lambda: pipe.make_batch(share, 0), seconds)
        batch = pipe.make_batch(share, 0)
        step = rate(pipe, lambda: run(batch), seconds) if run else None
        batches = endless(pipe)
        whole = rate(pipe, lambda: (run or ignore)(next(batches)), seconds)
    return Stages(read, decoded, augment, step, whole)


def loading_rate(pipe: Pipeline, decode: Decode[Any], seconds: float) -> float:
    """Images/s of the source alone, decoding by `decode`."""
    steps = count()
    return rate(pipe, lambda: pipe.source.share(next(steps), decode), seconds)


def rate(pipe: Pipeline, work: Callable[[], object], seconds: float) -> float:
    """Images/s of `work`, which does one batch; the first call is not counted."""
    work()
    settle(pipe.device)
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        work()
        done += 1
    settle(pipe.device)
    return done * pipe.spec.size / (time.perf_counter() - start)


def settle(device: torch.device) -> None:
    """Wait for the device, so that its work is counted."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def trainer(pipe: Pipeline) -> Callable[[Batch], None]:
    """One optimizer step of the recipe's method on a batch.

    Raises:
        RecipeError: the recipe names no method or no train section.
    """
    if pipe.recipe.train is None:
        raise RecipeError(f"{pipe.recipe.path}: no train section; add one, or measure data only")
    run = prepare(pipe, build_method(pipe.recipe, pipe.spec), pipe.recipe.train)

    def step(batch: Batch) -> None:
        run.optimizer.zero_grad()
        with run.autocast():
            loss = run.method(batch).loss
        loss.backward()  # type: ignore[no-untyped-call]
        run.optimizer.step()

    return step


def ignore(batch: Batch) -> None:
    """A trainer that does nothing."""


def endless(pipe: Pipeline) -> Iterator[Batch]:
    """Epoch after epoch."""
    while True:
        yield from pipe
