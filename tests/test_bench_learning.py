"""The plan of tools/bench_learning.py: a shorter run of the same recipe."""

import importlib.util
import json
import sys

import pytest

from sslpipe.methods import METHODS
from sslpipe.recipe import find_recipe, load_recipe, parse_recipe, recipes
from sslpipe.train.checkpoint import recipe_text
from sslpipe.train.run import build_method

from .conftest import ROOT


@pytest.fixture(scope="module")
def bench():
    """tools/bench_learning.py as a module; its neighbours are importable while it is loaded."""
    tools = str(ROOT / "tools")
    sys.path.insert(0, tools)
    try:
        path = ROOT / "tools" / "bench_learning.py"
        spec = importlib.util.spec_from_file_location("bench_learning", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(tools)


def made(*overrides):
    sets = ["train.epochs=200", "train.warmup_epochs=10", *overrides]
    return load_recipe(find_recipe("simclr_cifar"), overrides=sets)


def test_warmup_and_milestones_shrink_with_the_run(bench):
    recipe = made("train.schedule=multistep", "train.milestones=[120, 160]")
    train = bench.shortened(recipe, 50).train
    assert (train.epochs, train.warmup_epochs, train.milestones) == (50, 2.5, (30, 40))
    assert bench.shortened(made(), 400).train.warmup_epochs == 10


@pytest.mark.parametrize("epochs", [1, 2, 3, 7])
def test_the_shortest_runs_are_recipes_too(bench, epochs):
    recipe = made("train.schedule=multistep", "train.milestones=[120, 160, 199]")
    short = bench.shortened(recipe, epochs)
    assert parse_recipe(recipe_text(short)).fingerprint == short.fingerprint


@pytest.mark.parametrize("name", [n for n in sorted(METHODS) if n + "_cifar" in recipes()])
def test_narrow_backbones_fit_every_method(bench, name, sample):
    import sslpipe

    recipe = load_recipe(find_recipe(name + "_cifar"), overrides=["stream.batch_size=2"])
    narrow = bench.trained_by(recipe, backbone=bench.narrow(recipe.train.backbone))
    with sslpipe.load(narrow, shards=sample, device="cpu", rank=0, world_size=1) as pipe:
        counts = [count(build_method(r, pipe.spec).encoder) for r in (narrow, recipe)]
    assert counts[0] <= counts[1]  # some recipes are as narrow
    assert counts[0] < 1.5e6


def count(encoder):
    return sum(p.numel() for p in encoder.parameters())


def test_times_are_those_of_the_steps_whenever_the_run_was_resumed(bench, tmp_path):
    path = tmp_path / "metrics.jsonl"
    rates = [(10, 512.0), (20, 256.0), (25, 512.0)]  # step, images/s at a batch of 512
    lines = [{"step": s, "images_per_s": r, "loss": 9.0 - s / 10} for s, r in rates]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    seen = bench.history(path, made())
    assert seen == {"minutes": 35 / 60, "first_loss": 8.0, "last_loss": pytest.approx(43 / 6)}
