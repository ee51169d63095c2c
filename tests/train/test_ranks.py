"""One, two and four processes of torchrun train alike: the same global batches, the same losses.

Whole or sharded, compiled or not, killed or not; and a run begun on some ranks goes on on others.
"""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sslpipe.train import load_encoder
from sslpipe.train.checkpoint import read_checkpoint, read_stored
from tests.servers import free_port

from . import ranks

ROOT = Path(__file__).parents[2]
STEPS, FIRST, SECOND = 8, 3, 6
ON_FOUR = ("simclr", "byol", "dino")  # the others on two ranks: four share the cores of a test
RECIPE = """
stream: {{batch_size: 12, seed: 5}}
views:
  global:
    count: 2
    ops:
      - RandomResizedCrop: {{size: [16, 16], scale: [0.3, 1.0]}}
      - RandomHorizontalFlip
      - Normalize
masks: {{random: {{view: global, patch_size: 4, sampler: random}}}}
method: {method}
train:
  backbone: {backbone}
  optimizer: {optimizer}
  lr_batch: 12
  epochs: 8
  {more}
run: {{workers: 0, prefetch: 0, threads: 1}}
"""
RESNET = "{cifar_resnet: {width: 8, blocks: [1, 1, 1, 1]}}"
VIT = "{vit_tiny: {patch_size: 4, embed_dim: 16, depth: 2, num_heads: 2}}"
SMALL = "projector: [32, 16]"


def recipe(method, backbone, optimizer, more=""):
    return RECIPE.format(method=method, backbone=backbone, optimizer=optimizer, more=more)


def vicreg(more):
    return recipe(f"{{vicreg: {{{SMALL}}}}}", RESNET, "{sgd: {lr: 1e-3}}", more)


def mae(more):
    method = "{mae: {decoder_dim: 16, decoder_depth: 1, decoder_heads: 2}}"
    return recipe(method, VIT, "{adamw: {lr: 1e-3}}", more)


def dino(more):
    method = "{dino: {prototypes: 12, hidden: 16, bottleneck: 8, momentum: 0.9}}"
    return recipe(method, VIT, "{adamw: {lr: 1e-3}}", f"clip_norm: 0.5\n  {more}")


# rates are low: with batch norm, ReLU and 12 samples, rounding grows tenfold a step at usual ones
ALIKE = {
    "simclr": recipe(f"{{simclr: {{{SMALL}}}}}", RESNET, "{sgd: {lr: 1e-4}}"),
    "byol": recipe(f"{{byol: {{{SMALL}, predictor_hidden: 32}}}}", RESNET, "{sgd: {lr: 1e-3}}"),
    "barlow_twins": recipe(f"{{barlow_twins: {{{SMALL}}}}}", RESNET, "{lars: {lr: 1e-3}}"),
    "vicreg": vicreg(""),
    "accumulated": vicreg("accumulate: 2"),
    "mae": mae(""),
    "dino": dino("monitor: {}"),
}
# name -> the recipe, and whose losses it has
VARIANTS = {
    "vicreg sharded": (vicreg("parallel: fsdp"), "vicreg"),
    "accumulated sharded": (vicreg("parallel: fsdp\n  accumulate: 2"), "accumulated"),
    "dino sharded": (
        dino("parallel: fsdp\n  checkpoint_activations: true\n  monitor: {}"), "dino",
    ),
    "mae compiled": (mae("compile: true\n  checkpoint_activations: true"), "mae"),
    "mae compiled and sharded": (mae("compile: true\n  parallel: fsdp"), "mae"),
}  # fmt: skip
SHARDED, WHOLE = VARIANTS["dino sharded"][0], ALIKE["dino"]


def torchrun(folder, count, shards, runs):
    """Do `runs` in one launch of `count` processes; how it ended, and what it said."""
    plan = folder / "plan.json"
    plan.write_text(json.dumps({"shards": str(shards), "runs": runs}))
    launcher = [
        "-m", "torch.distributed.run", "--nproc-per-node", str(count),
        "--master-port", str(free_port()),
    ]  # fmt: skip
    command = [sys.executable, *launcher, ranks.__file__, str(plan)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environ, check=False, timeout=500
    )
    return done.returncode, done.stderr


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def column(out, name="loss"):
    found = [row[name] for row in rows(out) if row.get(name) is not None]
    return torch.tensor(found, dtype=torch.float64)


def global_batches(out, count):
    """The number and the uids of each batch that all ranks had, over the ranks in their order."""
    files = [out / f"{rank}-of-{count}.uids" for rank in range(count)]
    parts = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    had = min(map(len, parts))
    parts = [part[:had] for part in parts]
    assert len({tuple(number for number, _ in part) for part in parts}) == 1
    return [
        (row[0][0], [uid for _, uids in row for uid in uids]) for row in zip(*parts, strict=True)
    ]


def one(folder, name, text, count, steps=STEPS, **options):
    """What `ranks.py` takes for a run."""
    return {"out": str(folder / f"{name}-{count}"), "recipe": text, "max_steps": steps, **options}


def moved(folder, name, text, steps, **options):
    """The same for a part of a run that several numbers of ranks go on with."""
    return {"out": str(folder / name), "recipe": text, "max_steps": steps, **options}


@pytest.fixture(scope="module")
def root(tmp_path_factory, packed):
    """The folder of all runs; processes of one test run share them, for they take two minutes."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "ranks"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            make_runs(folder, packed)
            (folder / "done").touch()
    return folder


def make_runs(folder, packed):
    """Those of two ranks, of four, and of this process; what was begun on some goes on there."""
    sharded = [(name, text) for name, (text, _) in VARIANTS.items()]
    plans = {
        2: [
            *(one(folder, name, text, 2) for name, text in (*ALIKE.items(), *sharded)),
            moved(folder, "cut, cut, whole", SHARDED, FIRST),
            moved(folder, "whole, cut", WHOLE, FIRST),
        ],
        4: [
            *(one(folder, name, ALIKE[name], 4) for name in ON_FOUR),
            one(folder, "dino sharded", SHARDED, 4),
            moved(folder, "cut, cut, whole", SHARDED, SECOND, resume=True),
            moved(folder, "whole, cut", SHARDED, STEPS, resume=True),
        ],
        1: [
            *(one(folder, name, text, 1) for name, text in ALIKE.items()),
            moved(folder, "cut, cut, whole", WHOLE, STEPS, resume=True),
        ],
    }
    for count in (2, 4):
        code, said = torchrun(folder, count, packed, plans[count])
        assert code == 0, said
    for run in plans[1]:
        ranks.go(packed, **run)


def check_losses(out, expected, rtol=1e-5):
    assert [row["step"] for row in rows(out) if "loss" in row] == [*range(1, len(expected) + 1)]
    torch.testing.assert_close(column(out), expected, rtol=rtol, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"), [*((name, 2) for name in ALIKE), *((name, 4) for name in ON_FOUR)]
)
def test_ranks_have_the_batches_and_losses_of_one_process(name, count, root):
    alone, several = root / f"{name}-1", root / f"{name}-{count}"
    assert global_batches(several, count) == global_batches(alone, 1)
    expected = column(alone)
    assert len(expected) == STEPS
    assert expected.std() > 1e-3  # it moves
    check_losses(several, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_sharded_and_compiled_runs_have_the_losses_of_one_process(name, root):
    check_losses(root / f"{name}-2", column(root / f"{VARIANTS[name][1]}-1"))


@pytest.mark.slow
def test_recompiles_are_in_the_rows(root):
    assert column(root / "mae compiled-2", "recompiles").tolist() == [0.0] * STEPS
    assert "recompiles" not in rows(root / "mae-2")[-1]


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_teachers_encoders_and_monitors_of_a_sharded_run_are_those_of_one_process(count, root):
    alone, several = root / "dino-1", root / f"dino sharded-{count}"
    whole, parts = (read_checkpoint(out / "last.pt") for out in (alone, several))
    assert read_stored(several / "last.pt").encoder == {}
    for left, right in ((whole.method, parts.method), (whole.encoder, parts.encoder)):
        assert left.keys() == right.keys()
        for name, tensor in left.items():
            torch.testing.assert_close(right[name], tensor, rtol=1e-4, atol=1e-5)
    assert any(name.startswith("teacher.") for name in parts.method)
    encoder, _ = load_encoder(several / "last.pt")
    torch.testing.assert_close(encoder.state_dict(), parts.encoder)
    # label-free numbers are of rank 0's share, so of as many ranks
    for name, other in (("eval/mean", alone), ("feature_std", root / f"dino-{count}")):
        expected = column(other, name)
        assert len(expected) > 1
        torch.testing.assert_close(column(several, name), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_run_goes_on_on_other_ranks_sharded_or_not(root):
    expected = column(root / "dino-1")
    for name in ("cut, cut, whole", "whole, cut"):
        check_losses(root / name, expected)
        files = [read_stored(file).parts for file in (root / name).glob("*.pt")]
        assert len(files) == 2
        named = {parts["folder"] for parts in files if parts}
        assert {folder.name for folder in (root / name).glob("parts-*")} == named
    assert read_stored(root / "cut, cut, whole" / "last.pt").parts is None
    read_checkpoint(root / "whole, cut" / "best.pt")


@pytest.mark.slow
def test_a_rank_is_killed_and_two_go_on_where_three_were(root, packed, tmp_path):
    """As two launches: an agent that forms a new group of fewer ranks does no more than that."""
    out = tmp_path / "killed"
    run = {"out": str(out), "recipe": SHARDED, "max_steps": STEPS}
    code, said = torchrun(tmp_path, 3, packed, [{**run, "kill": [1, 5]}])
    assert code != 0
    assert "SIGKILL" in said or "-9" in said
    kept = read_stored(out / "last.pt")
    before = [batch for batch in global_batches(out, 3) if batch[0] < kept.step]
    assert 0 < kept.step < 5
    code, said = torchrun(tmp_path, 2, packed, [{**run, "resume": True}])
    assert code == 0, said
    assert [*before, *global_batches(out, 2)] == global_batches(root / "dino-1", 1)
    # a third is no binary number, so means over three ranks round where those of two do not
    check_losses(out, column(root / "dino-1"), rtol=2e-4)
