import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sslpipe.errors import RecipeError
from sslpipe.process import Ranks, launcher_ranks, node_ranks
from sslpipe.train import Every, start_world, train
from sslpipe.train.world import check_meeting, rank_device
from tests.servers import free_port

ROOT = Path(__file__).parents[2]
TOY = str(Path(__file__).with_name("toy.py"))


def test_detect():
    assert launcher_ranks({}) == Ranks(rank=0, size=1, local_rank=0)
    environ = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    assert launcher_ranks(environ) == Ranks(5, 8, 1)
    assert rank_device(launcher_ranks(environ), "cuda") == torch.device("cuda:1")
    assert rank_device(launcher_ranks(environ), "cpu") == torch.device("cpu")
    assert rank_device(launcher_ranks(environ), "cuda:3") == torch.device("cuda:3")


def test_one_process_needs_no_group(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with start_world("cpu") as world:
        assert world == Ranks()
        assert not torch.distributed.is_initialized()


def torchrun(out, *options):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
        "--master-port", str(free_port()), TOY, str(out), *options,
    ]  # fmt: skip
    # the package of this checkout, whatever is installed
    environ = {**os.environ, "PYTHONFAULTHANDLER": "1", "PYTHONPATH": str(ROOT)}
    for _ in range(2):
        result = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
        # 1 of 23 runs with torch 2.14.1 died in native code with this message; once is its own
        if result.returncode == 0 or "terminate called without an active" not in result.stderr:
            break
        shutil.rmtree(out, ignore_errors=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_two_processes_are_one_on_the_joined_batch(toy, tmp_path):
    """Under torchrun, with accumulation; rank 1 alone is asked to stop in step 4.

    Both then stop at step 6, where they confer, with the weights of one process; which goes on
    from their checkpoint to the end.
    """
    torchrun(tmp_path / "two", "--accumulate", "2", "--terminate", "7", "--watch")
    recipe = toy.recipe(accumulate=2)

    def alone(out, **options):
        method = toy.Toy()
        monitor, every = toy.Spread(), Every(3, 5, 2)
        options = {**options, "monitor": monitor, "every": every}
        train(toy.Pipe(recipe), method, recipe.train, out=tmp_path / out, **options)
        return method.state_dict()

    ranks = [torch.load(tmp_path / "two" / f"rank{rank}.pt") for rank in (0, 1)]
    saved = torch.load(tmp_path / "two" / "last.pt")
    assert saved["step"] == 6
    assert saved["stream"] == {"step": 12}
    for name, tensor in alone("part", max_steps=6).items():
        torch.testing.assert_close(ranks[0][name], tensor, rtol=0, atol=1e-6)
        assert torch.equal(ranks[0][name], ranks[1][name])
        assert torch.equal(saved["method"][name], ranks[0][name])
    whole = alone("whole")
    for name, tensor in alone("two", resume=True).items():
        torch.testing.assert_close(tensor, whole[name], rtol=0, atol=1e-6)
    two, one = (
        [json.loads(line) for line in (tmp_path / out / "metrics.jsonl").read_text().splitlines()]
        for out in ("two", "whole")
    )
    evaluated = [0, 3, 5, 8, 10]  # first steps that are past the ends of epochs of 2.5 steps
    assert [row["step"] for row in two if "eval/spread" in row] == evaluated
    assert [row["step"] for row in one if "eval/spread" in row] == evaluated
    for left, right in zip(two, one, strict=True):  # rank 0 evaluated what one process has
        assert left.get("eval/spread") == pytest.approx(right.get("eval/spread"), abs=0.02)


@pytest.mark.parametrize(
    ("environ", "message"),
    [({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 without RANK, so each process would read the same data"),
     ({"WORLD_SIZE": "x", "RANK": "0"}, "WORLD_SIZE='x' is no number"),
     ({"WORLD_SIZE": "2", "RANK": ""}, "RANK='' is no number"),
     ({"WORLD_SIZE": "2", "RANK": "-1"}, "RANK='-1' is no number"),
     ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK=2 is not below WORLD_SIZE=2"),
     ({"WORLD_SIZE": "0"}, "RANK=0 is not below WORLD_SIZE=0"),
     ({"RANK": "0", "LOCAL_RANK": "a"}, "LOCAL_RANK='a' is no number")],
    ids=str,
)  # fmt: skip
def test_half_of_what_torchrun_says_is_refused(environ, message):
    with pytest.raises(RecipeError, match=message):
        launcher_ranks(environ)


@pytest.mark.parametrize(
    ("environ", "message"),
    [({}, "without MASTER_ADDR"),
     ({"MASTER_ADDR": "a"}, "WORLD_SIZE=2 without MASTER_PORT"),
     ({"MASTER_ADDR": "a", "MASTER_PORT": "b"}, "MASTER_PORT='b' is no number"),
     ({"MASTER_ADDR": "a", "MASTER_PORT": "65536"}, "MASTER_PORT=65536 is no port")],
    ids=str,
)  # fmt: skip
def test_ranks_that_cannot_meet_are_refused_before_they_wait(environ, message):
    with pytest.raises(RecipeError, match=message):
        check_meeting({"WORLD_SIZE": "2", **environ})


def test_ranks_of_a_machine_are_counted_as_torchrun_says(monkeypatch):
    for text, count in (("3", 3), ("0", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", text)
        assert node_ranks() == count
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "x")
    with pytest.raises(RecipeError, match="LOCAL_WORLD_SIZE='x' is no number"):
        node_ranks()
