"""`features` and `eval` under torchrun: each rank encodes its share, the results are one's."""

import json
import os
import subprocess
import sys

import pytest

from sslpipe.cli import features
from tests.conftest import ROOT

from . import commands

RECIPE = """
stream: {batch_size: 8, seed: 5}
views: {global: {count: 2, ops: [RandomResizedCrop: {size: [16, 16]}, Normalize]}}
method: {simclr: {projector: [16, 8]}}
train: {backbone: {cifar_resnet: {width: 8}}, optimizer: {sgd: {lr: 0.1}}, epochs: 1}
run: {workers: 0, threads: 1}
"""


def run(plan, folder, *launcher):
    """Do commands; what they print."""
    file = folder / "plan.json"
    file.write_text(json.dumps([[str(word) for word in words] for words in plan]))
    command = [sys.executable, *launcher, commands.__file__, str(file)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environ, check=False, timeout=400
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_two_ranks_measure_and_write_what_one_does(tmp_path, packed):
    recipe, trained = tmp_path / "a.yaml", tmp_path / "run"
    recipe.write_text(RECIPE)
    training = ["train", recipe, "--shards", packed, "--out", trained, "--max-steps", 1]

    def looks(name):
        file, cache = tmp_path / f"{name}.safetensors", tmp_path / name
        return [
            ["features", trained, packed, "--out", file, "--batch-size", 4],
            ["eval", trained, packed, "--protocols", "knn,clustering", "--json", "--cache", cache],
        ]

    alone = run([training, *looks("one")], tmp_path)
    two = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    # a launch each: the store of torchrun's agent serves one process group after the other badly
    several = "".join(run([words], tmp_path, *two) for words in looks("two"))
    files = [(tmp_path / f"{name}.safetensors").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]
    assert len(list((tmp_path / "one").iterdir())) == 1
    kept = [[file.read_bytes() for file in (tmp_path / name).iterdir()] for name in ("one", "two")]
    assert kept[0] == kept[1]
    measures = [json.loads(said[said.index("\n{") :]) for said in (alone, several)]
    assert measures[0] == measures[1]
    assert measures[0].keys() >= {"trained", "untrained", "pixels"}
    assert several.count("features of 45 samples") == 1  # of rank 0 alone


@pytest.mark.parametrize(("rank", "shows"), [("0", True), ("1", False)])
def test_only_rank_0_draws_a_bar(monkeypatch, capfd, rank, shows):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with features.own_bar() as update:
        shown = features.ExtractProgress(update)
        shown(5, 5)
    assert ("5/5 samples" in capfd.readouterr().err) == shows
    assert shown.rate.endswith(" samples/s")
    shown(0, 0)  # fewer shards than ranks
    assert shown.rate.endswith(" s, by other processes")
