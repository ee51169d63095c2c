"""Where does the time go? Images/s of each stage alone, and of all together.

Each stage runs on its own inputs, made beforehand, so its rate is what it could do if nothing
else held it up; `end to end` is what a training run gets.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch

from .batch import Batch
from .errors import RecipeError
from .pipeline import Pipeline, load
from .recipe import Recipe
from .stream.open import Shards
from .stream.tasks import READ
from .train import initial_method
from .train.loop import endless
from .train.run import prepare

RATES = ("read", "decode", "augment", "step", "end_to_end")


@dataclass(frozen=True, slots=True)
class Stages:
    """Images/s; `step` and `end_to_end` are None without a method."""

    read: float
    decode: float
    augment: float
    step: float | None
    end_to_end: float
    scaled: str  # how often images were decoded at a smaller scale

    @property
    def rates(self) -> dict[str, float]:
        """What there is of them."""
        rates = {name: getattr(self, name) for name in RATES}
        return {name: rate for name, rate in rates.items() if rate is not None}

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
            f"of it. {self.scaled}."
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
        read = rate(pipe, each_step(lambda step: pipe.loading.load(step, READ)), seconds)
        decoded = rate(pipe, each_step(pipe.load_share), seconds)
        share = pipe.load_share(0)
        augment = rate(pipe, lambda: pipe.make_batch(share, 0), seconds)
        batch = pipe.make_batch(share, 0)
        step = rate(pipe, lambda: run(batch), seconds) if run else None
        batches = endless(pipe)
        whole = rate(pipe, lambda: (run or ignore)(next(batches)), seconds)
    return Stages(read, decoded, augment, step, whole, pipe.summary)


def each_step(load: Callable[[int], object]) -> Callable[[], object]:
    """`load` of one step after the other."""
    steps = count()
    return lambda: load(next(steps))


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
    run = prepare(pipe, initial_method(pipe.recipe, pipe.spec), pipe.recipe.train)

    def step(batch: Batch) -> None:
        run.optimizer.zero_grad()
        with run.autocast():
            loss = run.method(run.suited(batch)).loss
        loss.backward()
        run.optimizer.step()

    return step


def ignore(batch: Batch) -> None:
    """A trainer that does nothing."""
