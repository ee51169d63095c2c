"""Clustering, queues and SIGReg: two gloo processes on halves of a batch against one on the whole.

The processes run this module by its name, so that nothing depends on how pytest imports it.
"""

import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sslpipe import methods
from sslpipe.batch import Batch, BatchSpec, MaskSpec, ViewSpec
from sslpipe.methods import collectives
from sslpipe.methods.sinkhorn import sinkhorn_knopp

ROOT = Path(__file__).parents[2]  # the code beside these tests, whatever else is installed
SIZE, STEPS = 4, 3
COUNTS = {"global": 2, "local": 1, "target": 1, "anchor": 1, "focal": 2}
# the first layer of a projector is all: no batch norm, whose statistics gloo cannot share
SETTINGS = {
    "deepcluster_v2": {"projector": (5,), "prototypes": 3},
    "lejepa": {"projector": (5,), "slices": 8},
    "msn": {"projector": (5,), "prototypes": 6, "momentum": 0.5},
    "nnclr": {"projector": (5,), "predictor_hidden": 6, "queue": 8},
    "swav": {"projector": (5,), "prototypes": 6, "queue": 8, "freeze_prototypes": 0.4},
}


class Patches(nn.Module):
    """Four patches of one pixel each; all that it sees, averaged, is the class token."""

    dim, patch_size = 6, 1

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 6)

    def tokens(self, images_BCHW, visible_BS=None, *, hidden_BN=None, mask_token_D=None):
        x_BND = self.linear(images_BCHW.flatten(2).transpose(1, 2)).tanh()
        if visible_BS is not None:
            x_BND = x_BND.gather(1, visible_BS[:, :, None].expand(-1, -1, 6))
        return torch.cat([x_BND.mean(1, keepdim=True), x_BND], dim=1)

    def forward(self, images_BCHW):
        return self.tokens(images_BCHW)[:, 0]


def make_spec(size):
    views = {name: ViewSpec(count, 3, 2, 2) for name, count in COUNTS.items()}
    masks = {"drop": MaskSpec("anchor", 1, 1, (2, 2), 1)}
    return BatchSpec(SIZE // size, SIZE, views, masks, {}, epoch_size=SIZE)


def make_batch(rank, size, step):
    """This rank's share of four samples; the step is the epoch."""
    generator = torch.Generator().manual_seed(step)
    views = {
        name: torch.randn(count, SIZE, 3, 2, 2, generator=generator, dtype=torch.float64)
        for name, count in COUNTS.items()
    }
    drop = torch.rand(1, SIZE, 4, generator=generator).argsort(-1) < 1
    # DeepCluster has not met the last sample of step 2: ranks know different numbers of samples
    uids = torch.tensor([9, 2, 7, 5 if step == 2 else 4]).chunk(size)[rank]
    return Batch(
        views={name: v.chunk(size, dim=1)[rank] for name, v in views.items()},
        masks={"drop": drop.chunk(size, dim=1)[rank]}, hidden={}, targets={}, labels=uids,
        params={}, uids=uids, keys=("",) * len(uids),
        valid=torch.ones(len(uids), dtype=torch.bool), epoch=step, step=step,
    )  # fmt: skip


def without_batch_norm(module):
    for name, child in module.named_children():
        setattr(module, name, nn.Identity() if isinstance(child, nn.BatchNorm1d) else child)
        without_batch_norm(child)
    return module


def steps(name, rank, size):
    """Losses and gradients of three steps, and what is left of them: weights, queues, memories."""
    torch.manual_seed(0)
    method = methods.METHODS[name](Patches(), make_spec(size), **SETTINGS[name])
    method = without_batch_norm(method).double()
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.1)
    methods.follow(optimizer, method, total_steps=STEPS)
    model = DistributedDataParallel(method) if size > 1 else method
    losses, gradients = [], []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = model(make_batch(rank, size, step)).loss
        loss.backward()
        losses.append(collectives.all_mean(loss))
        gradients.append([p.grad.clone() for p in method.parameters() if p.requires_grad])
        optimizer.step()
    return {"losses": losses, "gradients": gradients, "state": dict(method.state_dict())}


def sinkhorn(rank, size):
    scores = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).double()
    own = (slice(0, 6) if size == 1 else slice(0, 2), slice(2, 6))[rank]  # 2 samples and 4
    return sinkhorn_knopp(scores[own], epsilon=0.3)


def results(rank, size):
    return {name: steps(name, rank, size) for name in SETTINGS}


def script(folder, rank):
    """What each of the two processes does."""
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    torch.save({"sinkhorn": sinkhorn(rank, 2), **results(rank, 2)}, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_two_ranks_equal_one_on_the_joined_batch(tmp_path):
    command = [sys.executable, "-m", "tests.methods.test_collectives_cluster", str(tmp_path)]
    processes = [subprocess.Popen([*command, str(rank)], cwd=ROOT) for rank in range(2)]
    try:
        expected = results(0, 1)
        assert [process.wait(60) for process in processes] == [0, 0]
    finally:
        for process in processes:  # the other one waits for ever if one fails
            process.kill()
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name in SETTINGS:
        assert all(loss != 0 for loss in expected[name]["losses"][1:])
        for rank in range(2):
            torch.testing.assert_close(found[rank][name], expected[name], rtol=0, atol=1e-10)
    joined = torch.cat([part["sinkhorn"] for part in found])
    torch.testing.assert_close(joined, sinkhorn(0, 1), rtol=0, atol=1e-12)


if __name__ == "__main__":
    script(Path(sys.argv[1]), int(sys.argv[2]))
