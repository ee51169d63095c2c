"""How a run is put together, before its first batch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from sslpipe.errors import RecipeError
from sslpipe.methods.moco import GroupedBatchNorm
from sslpipe.train import replicas, run


def test_batch_norm_sees_all_ranks_on_gpus_but_for_mocos_groups(toy, monkeypatch):
    monkeypatch.setattr(replicas.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(replicas, "DistributedDataParallel", lambda module: module)
    pipe = toy.Pipe(toy.recipe(), world_size=2)
    grouped = GroupedBatchNorm(nn.BatchNorm1d(3), 2)
    pipe.device = torch.device("cuda")
    module = replicas.replicate(nn.Sequential(nn.BatchNorm2d(3), grouped), pipe)
    assert [type(part) for part in module] == [nn.SyncBatchNorm, GroupedBatchNorm]


@pytest.mark.parametrize("stream", ["order: sequential", "remainder: short"])
def test_a_last_batch_that_would_be_short_is_refused(toy, stream):
    """Queues, groups of batch norm and BatchSpec.size know one batch size only."""
    recipe = toy.recipe(toy.RECIPE.replace("seed: 3", f"seed: 3, {stream}"))
    with pytest.raises(RecipeError, match=r"short last batch.*set stream\.remainder to wrap"):
        run.prepare_run(toy.Pipe(recipe), toy.Toy(), recipe.train)


def test_rates_are_those_of_the_batch_of_all_ranks(toy, monkeypatch):
    monkeypatch.setattr(run, "replicate", lambda module, pipeline: module)
    recipe = toy.recipe(lr_batch=2)
    pipe = toy.Pipe(recipe, world_size=2)
    made = run.prepare_run(pipe, toy.Toy(), recipe.train)
    assert (pipe.spec.size, made.plan.lr) == (4, 1e-2 * 8 / 2)


def test_the_narrowest_networks_train_on_a_cpu_with_contiguous_weights():
    """In a process of their own: what is to be noticed ends the process that it happens in."""
    script = Path(__file__).with_name("narrow.py")
    made = subprocess.run([sys.executable, str(script)], check=False, capture_output=True)
    assert made.returncode == 0, made.stderr.decode()


def test_only_cuda_gets_channels_last_weights():
    """What `move_module` asks of a module, on a machine without CUDA too."""
    asked = []

    class Convolution(nn.Conv2d):
        def to(self, device, memory_format):
            asked.append((device.type, memory_format))

    for kind in ("cpu", "cuda"):
        run.move_module(Convolution(3, 3, 3), torch.device(kind))
    assert asked == [("cpu", torch.contiguous_format), ("cuda", torch.channels_last)]
