"""Time lost to data is seen where a step has its batch and is slow, and looking changes nothing."""

import json
from types import SimpleNamespace

import pytest
import torch

from sslpipe import load
from sslpipe.recipe import parse_recipe
from sslpipe.stream import prefetch
from sslpipe.train import starvation, train
from sslpipe.train.run import initial_method
from sslpipe.train.starvation import Starvation

from ..conftest import RECIPE

TRAINABLE = (
    RECIPE
    + """\
method: {simclr: {projector: [16, 8]}}
train:
  backbone: {cifar_resnet: {width: 8, blocks: [1, 1, 1, 1]}}
  optimizer: {sgd: {lr: 0.1}}
  epochs: 4
"""
)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(starvation.time, "perf_counter", clock)
    return clock


class Pipe:
    recipe = SimpleNamespace(run=SimpleNamespace(prefetch=2))
    world_size = 1

    def __init__(self, clock, ready=2):
        self.clock, self.ready = clock, ready

    def resting(self):
        return self

    def __enter__(self):
        self.clock.now += 30.0
        return self.ready

    def __exit__(self, *_):
        pass


def run_of(pipe):
    settings = SimpleNamespace(accumulate=1)
    return SimpleNamespace(pipeline=pipe, settings=settings, device=torch.device("cpu"))


def test_steps_that_are_slow_beside_the_pipeline_count_as_lost(clock):
    found = Starvation(run_of(Pipe(clock)), step=100)
    for step in range(100, 110):
        with found.resting(step):
            clock.now += 1.0 if step - 100 in prefetch.FIRST else 4.0
        with found.left_out():
            clock.now += 50.0
    assert found.own == 1.0
    # of four steps after the first at rest, two took 4 s and two 1 s
    assert found.read(110, waited=0.1) == pytest.approx(1 - 4 / 10)
    clock.now += 10.0
    assert found.read(120, waited=0.1) == pytest.approx(0.1)
    assert found.read(120, waited=0.2) == 0.2


def test_without_a_step_at_rest_waiting_is_all_that_is_known(clock):
    found = Starvation(run_of(Pipe(clock, ready=0)), step=0)
    for step in range(10):
        with found.resting(step):
            clock.now += 1.0
    assert found.own is None
    assert found.read(10, waited=0.3) == 0.3


def test_rest_changes_neither_losses_nor_weights(packed, tmp_path, monkeypatch):
    recipe = parse_recipe(TRAINABLE)

    def trained(out):
        with load(recipe, shards=packed, device="cpu", rank=0, world_size=1) as pipe:
            method = initial_method(recipe, pipe.spec)
            train(pipe, method, recipe.train, out=out)
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return [row["loss"] for row in rows], method.state_dict(), rows

    losses, weights, rows = trained(tmp_path / "rested")
    assert all(row["data_wait"] <= row["data_lost"] <= 1 for row in rows)
    monkeypatch.setattr(prefetch, "FIRST", ())
    plain_losses, plain_weights, _ = trained(tmp_path / "plain")
    assert losses == plain_losses
    assert all(torch.equal(weights[name], plain_weights[name]) for name in weights)
