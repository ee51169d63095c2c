"""A pipeline and a method without images, for tests of the loop; as a script, one run of them."""

import argparse
import itertools
import signal
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from sslpipe.batch import Batch, BatchSpec, ViewSpec
from sslpipe.methods import Method, Output
from sslpipe.modalities.parts import Units
from sslpipe.recipe import parse_recipe
from sslpipe.recipe.schema import MonitorSection
from sslpipe.train import Every, Silent, start_world, train

RECIPE = """
stream: {batch_size: 8, seed: 3}
views: {global: {count: 1, ops: [Normalize]}}
method: toy
train:
  backbone: {"toy:make_encoder": {width: 6}}
  optimizer: {adamw: {lr: 1e-2, weight_decay: 0.1}}
  epochs: 4
  lr_batch: 8
  warmup_epochs: 1
  final_weight_decay: 0.2
  final_lr: 1.0e-05
"""
SIZE = 4


def recipe(text=RECIPE, **train):
    """The toy recipe with other train settings."""
    parsed = parse_recipe(text)
    return parsed.model_copy(update={"train": parsed.train.model_copy(update=train)})


class Pipe:
    """The API of sslpipe.Pipeline over batches that are a function of the step."""

    def __init__(self, recipe, *, length=5, rank=0, world_size=1):
        self.recipe, self.length, self.rank, self.world_size = recipe, length, rank, world_size
        self.device, self.units = torch.device("cpu"), Units("image")
        total = recipe.stream.batch_size
        views = {"global": ViewSpec("global", 1, "CHW", (3, SIZE, SIZE))}
        self.spec = BatchSpec(
            total // world_size,
            total,
            views,
            {},
            {},
        )
        self.step, self.wait_seconds, self.replaced, self.poison = 0, 0.0, 0, None

    @contextmanager
    def resting(self):
        yield 0  # batches: none is ahead

    def __len__(self):
        return self.length

    def __iter__(self):
        end = (self.step // self.length + 1) * self.length
        while self.step < end:
            self.step += 1
            yield self.batch(self.step - 1)

    def batch(self, step):
        generator = torch.Generator().manual_seed(1000 + step)
        images = torch.randn(self.spec.global_size, 3, SIZE, SIZE, generator=generator)
        if step == self.poison:
            images[1] = torch.nan
        share = slice(self.rank * self.spec.size, (self.rank + 1) * self.spec.size)
        uids = torch.arange(self.spec.global_size) + step * self.spec.global_size
        return Batch(
            views={"global": images[None, share]},
            masks={}, hidden={}, targets={}, params={}, labels=uids[share] % 3, uids=uids[share],
            keys=tuple(f"k{u}" for u in uids[share].tolist()),
            valid=torch.ones(len(uids[share]), dtype=torch.bool),
            epoch=step // self.length, step=step,
        )  # fmt: skip

    def state_dict(self):
        return {"step": self.step}

    def load_state_dict(self, state):
        self.step = state["step"]


class Encoder(nn.Module):
    """Flatten, linear, batch norm in eval mode only where asked for."""

    def __init__(self, width, dropout, norm):
        super().__init__()
        self.dim = width
        self.layer = nn.Linear(3 * SIZE * SIZE, width)
        self.norm = nn.BatchNorm1d(width) if norm else nn.Identity()
        self.drop = nn.Dropout(dropout)

    def forward(self, images):
        return self.drop(self.norm(self.layer(images.flatten(1))))


def make_encoder(view, *, width: int):
    assert view.shape == (3, SIZE, SIZE)
    return Encoder(width, 0.0, norm=False)


class Toy(Method):
    """Predict an EMA teacher's output: state outside the optimizer, random only by dropout."""

    def __init__(self, *, dropout=0.0, norm=False, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.encoder = Encoder(6, dropout, norm)
            self.head = nn.Linear(6, 6)
            self.teacher = nn.Linear(3 * SIZE * SIZE, 6).requires_grad_(False)
        self.progress = []
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, batch):
        images = batch.views["global"][0]
        z = self.head(self.encoder(images).relu())
        loss = (z - self.teacher(images.flatten(1))).square().mean()
        return Output(loss, {"norm": z.detach().norm(dim=1).mean()})

    @torch.no_grad()
    def after_step(self, progress):
        self.progress.append(progress)
        self.steps += 1
        self.teacher.weight.lerp_(self.encoder.layer.weight, 0.1)


class Spread:
    """A monitor whose number is a function of the weights, and which draws from torch's generator.

    A real one draws nothing; one that does must not change a run either.
    """

    def __init__(self, line="spread of the layer", number=None, **settings):
        self.settings, self.line = MonitorSection(**{"every_epochs": 1, **settings}), line
        self.number, self.modes = number or self.of_weights, []

    def of_weights(self, encoder):
        return torch.cos(1e3 * encoder.layer.weight.sum()).item()

    def __call__(self, encoder):
        torch.rand(7)
        self.modes.append(encoder.training)
        return {"spread": self.number(encoder), "other": 0.25}


class KillAt(Silent):
    """Send this process a signal once a step is done."""

    def __init__(self, step, number):
        self.at, self.number, self.messages = step, number, []

    def step(self, step):
        if step == self.at:
            signal.raise_signal(self.number)

    def message(self, text):
        self.messages.append(text)


def terminate_at(step):
    """A forward hook that sends SIGTERM to this process once, in its `step`-th call."""
    calls = itertools.count(1)

    def hook(*_):
        if next(calls) == step:
            signal.raise_signal(signal.SIGTERM)

    return hook


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--kill", type=int, default=-1)
    parser.add_argument("--terminate", type=int, default=-1)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--watch", action="store_true")
    options = parser.parse_args()
    mine = recipe(accumulate=options.accumulate)
    with start_world("cpu") as world:
        pipe = Pipe(mine, rank=world.rank, world_size=world.size)
        # other weights on every rank: DDP must start all of them from those of rank 0
        method = Toy(dropout=0.5 if world.size == 1 else 0.0, seed=world.rank)
        show = KillAt(options.kill, signal.SIGKILL)
        if world.rank == 1:  # only rank 0 has a reporter
            method.register_forward_hook(terminate_at(options.terminate))
        every, monitor = Every(3, 5, 2), Spread() if options.watch else None
        out = options.out
        train(pipe, method, mine.train, out=out, progress=show, every=every, monitor=monitor)
        torch.save(method.state_dict(), options.out / f"rank{world.rank}.pt")


if __name__ == "__main__":
    main()
