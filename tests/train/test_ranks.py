"""One, two and four processes of torchrun train alike: the same global batches, the same losses."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from . import ranks

ROOT = Path(__file__).parents[2]
STEPS = 12
RECIPE = """
stream: {{batch_size: 8, seed: 5}}
views:
  global:
    count: 2
    ops: [{{RandomResizedCrop: {{size: [16, 16], scale: [0.3, 1.0]}}}}, RandomHorizontalFlip, Normalize]
masks: {{random: {{view: global, patch_size: 4, sampler: random}}}}
method: {method}
train:
  backbone: {backbone}
  optimizer: {optimizer}
  lr_batch: 8
  epochs: 8
  {more}
run: {{workers: 0, prefetch: 0, threads: 1}}
"""
RESNET = "{cifar_resnet: {width: 8, blocks: [1, 1, 1, 1]}}"
VIT = "{vit_tiny: {patch_size: 4, embed_dim: 16, depth: 2, num_heads: 2}}"
SGD, ADAMW = "{sgd: {lr: 1e-3}}", "{adamw: {lr: 1e-3}}"


def recipe(method, backbone, optimizer, more=""):
    return RECIPE.format(method=method, backbone=backbone, optimizer=optimizer, more=more)


SMALL = "projector: [32, 16]"
RECIPES = {
    "simclr": recipe(f"{{simclr: {{{SMALL}}}}}", RESNET, "{sgd: {lr: 1e-4}}"),
    "byol": recipe(f"{{byol: {{{SMALL}, predictor_hidden: 32}}}}", RESNET, SGD),
    "barlow_twins": recipe(f"{{barlow_twins: {{{SMALL}}}}}", RESNET, "{lars: {lr: 2e-3}}"),
    "vicreg": recipe(f"{{vicreg: {{{SMALL}}}}}", RESNET, SGD),
    "mae": recipe("{mae: {decoder_dim: 16, decoder_depth: 1, decoder_heads: 2}}", VIT, ADAMW),
    "dino": recipe(
        "{dino: {prototypes: 12, hidden: 16, bottleneck: 8, momentum: 0.9}}", VIT, ADAMW,
        "clip_norm: 0.5",
    ),
    "accumulated": recipe(f"{{vicreg: {{{SMALL}}}}}", RESNET, SGD, "accumulate: 2"),
}  # fmt: skip


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def torchrun(folder, count, shards, runs, *, fails=False):
    """Do `runs` in one launch of `count` processes."""
    plan = folder / "plan.json"
    plan.write_text(json.dumps({"shards": str(shards), "runs": runs}))
    launcher = [
        "-m", "torch.distributed.run", "--nproc-per-node", str(count),
        "--master-port", str(free_port()),
    ]  # fmt: skip
    command = [sys.executable, *launcher, ranks.__file__, str(plan)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environ, check=False, timeout=400
    )
    assert (done.returncode != 0) == fails, done.stderr


def losses(out):
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return torch.tensor([json.loads(line)["loss"] for line in lines], dtype=torch.float64)


def global_batches(out):
    """The uids of each batch, over the ranks in their order."""
    files = sorted(out.glob("*.uids"))
    parts = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    assert len({tuple(step for step, _ in part) for part in parts}) == 1
    return [(row[0][0], sum((uids for _, uids in row), [])) for row in zip(*parts, strict=True)]


def run(root, name, count, **options):
    """What `ranks.py` takes for one of RECIPES."""
    out = str(root / f"{name}-{count}")
    return {"out": out, "recipe": RECIPES[name], "max_steps": STEPS, **options}


@pytest.fixture(scope="module")
def root(tmp_path_factory, packed):
    """All runs: of two and of four ranks, and of this process."""
    folder = tmp_path_factory.mktemp("ranks")
    for count in (2, 4):
        torchrun(folder, count, packed, [run(folder, name, count) for name in RECIPES])
    for name in RECIPES:
        ranks.go(packed, **run(folder, name, 1))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("name", RECIPES)
def test_ranks_have_the_batches_and_losses_of_one_process(name, count, root):
    one, several = root / f"{name}-1", root / f"{name}-{count}"
    assert global_batches(several) == global_batches(one)
    expected = losses(one)
    assert len(expected) == STEPS
    assert expected.std() > 1e-3  # it moves
    torch.testing.assert_close(losses(several), expected, rtol=1e-5, atol=0)
