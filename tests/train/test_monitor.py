"""Evaluation while a run trains: when, what is best, and that it changes nothing."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sslpipe.errors import RecipeError, SslpipeError
from sslpipe.train import Every, Silent, train
from sslpipe.train.log import Meter


class Told(Silent):
    """Keeps what the user is told."""

    def __init__(self):
        self.messages = []

    def message(self, text):
        self.messages.append(text)


def start(toy, out, monitor=None, *, pipe=None, **options):
    recipe = toy.recipe()
    method, pipe = toy.Toy(dropout=0.5, norm=True), pipe or toy.Pipe(recipe)
    return method, train(pipe, method, recipe.train, out=out, monitor=monitor, **options)


def scripted(toy, *numbers, **settings):
    """A monitor that finds these numbers in turn, before the first epoch and after each."""
    left = list(numbers)

    def number(_):
        value = left.pop(0)
        if isinstance(value, Exception):
            raise value
        return value

    return toy.Spread(number=number, **settings)


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def evaluated(out):
    return {row["step"]: row for row in rows(out) if "eval/spread" in row}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_it_changes_neither_weights_nor_stream(toy, tmp_path):
    """Its draws from torch's generator are fenced off; the modes of all parts are as they were."""
    pipes = [toy.Pipe(toy.recipe()) for _ in range(2)]
    plain, _ = start(toy, tmp_path / "a", pipe=pipes[0])
    monitor = toy.Spread()
    watched, _ = start(toy, tmp_path / "b", monitor, pipe=pipes[1])
    assert len(monitor.modes) == 5
    assert same(plain.state_dict(), watched.state_dict())
    assert pipes[0].state_dict() == pipes[1].state_dict()
    losses = [{r["step"]: r["loss"] for r in rows(tmp_path / out) if "loss" in r} for out in "ab"]
    assert losses[0].items() <= losses[1].items()


def test_it_comes_before_the_first_step_every_few_epochs_and_at_the_end(toy, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, result = start(toy, tmp_path, toy.Spread(every_epochs=3), every=Every(log=1000))
    found = evaluated(tmp_path)
    assert list(found) == [0, 15, 20]  # epochs of 5 steps; the run has 4
    assert found[0].keys() == {"step", "epoch", "eval/spread", "eval/other"}
    assert found[15].keys() >= {"loss", "eval/spread", "eval/other", "eval/best", "eval/best_step"}
    assert result.metrics["eval/spread"] == found[20]["eval/spread"]
    board = EventAccumulator(str(tmp_path)).Reload().Scalars("eval/spread")
    assert [e.step for e in board] == [0, 15, 20]


def test_best_is_kept_and_the_first_of_equals_stays(toy, tmp_path):
    told = Told()
    start(toy, tmp_path, scripted(toy, 0.9, 0.5, 0.7, 0.6, 0.7), progress=told)
    best, last = (torch.load(tmp_path / f"{name}.pt") for name in ("best", "last"))
    assert (best["step"], last["step"]) == (10, 20)
    found = evaluated(tmp_path)
    assert [r["eval/best"] for r in list(found.values())[1:]] == [0.5, 0.7, 0.7, 0.7]
    assert [r["eval/best_step"] for r in list(found.values())[1:]] == [5, 10, 10, 10]
    assert not list(tmp_path.glob("*.part"))
    assert "untrained: spread 0.900, other 0.250" in told.messages[0]
    assert told.messages[2] == "epoch 2: spread 0.700, other 0.250 (the best so far)"
    assert told.messages[3].endswith("(best: 0.700 at step 10)")
    assert told.messages[-1].endswith("best by the monitor: 0.700 at step 10, best.pt")


@pytest.mark.parametrize("stop", [3, 5, 10, 17])
def test_stopped_and_resumed_finds_the_same(toy, tmp_path, stop):
    start(toy, tmp_path / "whole", toy.Spread())
    start(toy, tmp_path / "parts", toy.Spread(), max_steps=stop)
    start(toy, tmp_path / "parts", toy.Spread(), resume=True)
    whole, parts = evaluated(tmp_path / "whole"), evaluated(tmp_path / "parts")
    for step, row in whole.items():
        for name in row:
            if name.startswith("eval/"):
                assert parts[step][name] == row[name]
    assert parts.keys() == whole.keys()
    best = [torch.load(tmp_path / out / "best.pt") for out in ("whole", "parts")]
    assert best[0]["step"] == best[1]["step"] == whole[20]["eval/best_step"]
    assert same(best[0]["method"], best[1]["method"])


def test_killed_and_resumed_finds_the_same(toy, tmp_path):
    """SIGKILL of a real process at step 8: the rows of steps 7 and 8 are made anew."""
    script = [sys.executable, str(Path(__file__).with_name("toy.py")), str(tmp_path / "parts")]
    killed = subprocess.run([*script, "--kill", "8", "--watch"], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    for out, resume in (("parts", True), ("whole", False)):
        recipe = toy.recipe()
        options = {"every": Every(3, 5, 2), "monitor": toy.Spread(), "resume": resume}
        train(toy.Pipe(recipe), toy.Toy(dropout=0.5), recipe.train, out=tmp_path / out, **options)
    left, right = ([(r["step"], r.get("eval/spread"), r.get("eval/best")) for r in rows(out)]
                   for out in (tmp_path / "parts", tmp_path / "whole"))  # fmt: skip
    assert left == right
    best = [torch.load(tmp_path / out / "best.pt") for out in ("whole", "parts")]
    assert same(best[0]["method"], best[1]["method"])


def test_killed_before_best_was_written(toy, tmp_path):
    start(toy, tmp_path, scripted(toy, 0.1, 0.5, 0.7), max_steps=10)
    (tmp_path / "best.pt").write_bytes((tmp_path / "last.pt").read_bytes()[:100])
    start(toy, tmp_path, scripted(toy, 0.6, 0.6), resume=True)
    assert torch.load(tmp_path / "best.pt")["step"] == 10


def test_killed_before_the_first_checkpoint_begins_with_one_row(toy, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "epoch": 0.0, "eval/spread": 0.5}\n')
    start(toy, tmp_path, scripted(toy, 0.1, 0.2), max_steps=5)
    assert [(r["step"], r["eval/spread"]) for r in rows(tmp_path)] == [(0, 0.1), (5, 0.2)]


def test_no_better_for_long_is_said_once_and_the_run_goes_on(toy, tmp_path):
    told = Told()
    numbers = (0.1, 0.5, 0.4, 0.4, 0.4)
    _, result = start(toy, tmp_path, scripted(toy, *numbers, patience=2), progress=told)
    said = [text for text in told.messages if "has not risen" in text]
    (text,) = said
    assert "spread has not risen above 0.500 of step 5 for 2 evaluations" in text
    assert told.messages.index(text) == 4  # after epoch 3
    assert result.steps == result.total


def test_what_cannot_be_compared_is_not(toy, tmp_path):
    """Another set or another protocol: what was best by the old one says nothing of the new one."""
    start(toy, tmp_path, scripted(toy, 0.1, 0.9), max_steps=5)
    told = Told()
    other = scripted(toy, 0.3, 0.4, 0.2, line="another set")
    start(toy, tmp_path, other, resume=True, progress=told)
    assert torch.load(tmp_path / "best.pt")["step"] == 15
    assert "another one than before" in told.messages[0]
    assert (tmp_path / "monitor.txt").read_text() == "another set\n"


def test_an_evaluation_that_fails_stops_a_run_only_at_its_start(toy, tmp_path):
    told, fault = Told(), SslpipeError("the set is gone")
    with pytest.raises(SslpipeError, match="the set is gone"):
        start(toy, tmp_path / "a", scripted(toy, fault))
    _, result = start(toy, tmp_path / "b", scripted(toy, 0.1, 0.5, fault, 0.6, 0.4), progress=told)
    assert result.steps == result.total
    assert list(evaluated(tmp_path / "b")) == [0, 5, 15, 20]
    assert "epoch 2: not evaluated, training goes on: the set is gone" in told.messages
    assert torch.load(tmp_path / "b" / "best.pt")["step"] == 15


def test_a_recipe_that_asks_for_one_gets_one_or_is_refused(toy, tmp_path):
    recipe = toy.recipe(monitor=toy.Spread().settings)
    with pytest.raises(RecipeError, match=r"train.monitor is set, but nothing evaluates; pass"):
        train(toy.Pipe(recipe), toy.Toy(), recipe.train, out=tmp_path)


def test_its_time_is_no_time_of_training(monkeypatch, toy):
    clock = iter([100.0, 101.0, 131.0, 134.0])
    monkeypatch.setattr("sslpipe.train.log.time.perf_counter", lambda: next(clock))
    meter = Meter(toy.Pipe(toy.recipe()), step=0, samples_per_step=8)
    with meter.left_out():
        pass  # 30 seconds
    assert meter.read(2)["images_per_s"] == pytest.approx(2 * 8 / 4)
