"""The plan of tools/bench/learning.py: a shorter run of the same recipe."""

import json

import pytest
from torch import nn

from sslpipe.methods import METHODS
from sslpipe.recipe import find_recipe, load_recipe, parse_recipe, recipes
from sslpipe.recipe.sections import recipe_text
from sslpipe.train.run import initial_method

from ..conftest import load_tool


@pytest.fixture(scope="module")
def bench():
    """tools/bench/learning.py as a module."""
    return load_tool("learning")


@pytest.fixture(scope="module")
def short():
    """tools/bench/short_recipes.py as a module."""
    return load_tool("short_recipes")


def made(*overrides):
    sets = ["train.epochs=200", "train.warmup_epochs=10", *overrides]
    return load_recipe(find_recipe("simclr_cifar"), overrides=sets)


def test_warmup_and_milestones_shrink_with_the_run(short):
    recipe = made("train.schedule=multistep", "train.milestones=[120, 160]")
    train = short.shortened(recipe, 50).train
    assert (train.epochs, train.warmup_epochs, train.milestones) == (50, 2.5, (30, 40))
    assert short.shortened(made(), 400).train.warmup_epochs == 10


@pytest.mark.parametrize("epochs", [1, 2, 3, 7])
def test_the_shortest_runs_are_recipes_too(short, epochs):
    recipe = made("train.schedule=multistep", "train.milestones=[120, 160, 199]")
    shortened = short.shortened(recipe, epochs)
    assert parse_recipe(recipe_text(shortened)).fingerprint == shortened.fingerprint


@pytest.mark.parametrize("name", [n for n in sorted(METHODS) if n + "_cifar" in recipes()])
def test_narrow_networks_fit_every_method(short, name, sample):
    import sslpipe

    recipe = load_recipe(find_recipe(name + "_cifar"), overrides=["stream.batch_size=2"])
    narrow = short.small(recipe)
    with sslpipe.load(narrow, shards=sample, device="cpu", rank=0, world_size=1) as pipe:
        counts = [count(initial_method(r, pipe.spec).encoder) for r in (narrow, recipe)]
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
    assert seen == {"minutes": 35 / 60, "losses": [8.0, 7.0, 6.5]}


def test_a_curve_begins_and_ends_where_the_run_does(bench):
    assert bench.curve([9.0, 5.0, 4.0, 3.0, 2.0]) == "9 5 3 2"
    assert bench.curve([9.0]) == "9 9 9 9"


def test_what_was_measured_is_read_afterwards(bench, tmp_path):
    path = tmp_path / "method" / "result.json"
    assert bench.remembered(path, lambda: {"knn": 0.5}) == {"knn": 0.5}
    assert bench.remembered(path, lambda: {"knn": 0.1}) == {"knn": 0.5}


def test_a_baseline_is_that_of_weights_normalisation_and_protocol(bench):
    recipe, encoder = made(), nn.Linear(2, 2)
    normalized = load_recipe(find_recipe("byol_cifar"))
    twin = nn.Linear(2, 2)
    twin.load_state_dict(encoder.state_dict())
    same = bench.digest(twin, recipe, False)
    others = [
        (encoder, recipe, True),
        (encoder, normalized, False),
        (nn.Linear(2, 2), recipe, False),
    ]
    assert bench.digest(encoder, recipe, False) == same
    assert same not in {bench.digest(*other) for other in others}
