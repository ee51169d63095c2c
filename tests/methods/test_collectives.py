"""Two gloo processes on halves of a batch against one process on the whole.

The processes run this file as a script, so that nothing depends on how pytest imports it.
"""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sslpipe import methods
from sslpipe.batch import Batch, BatchSpec, TargetSpec, ViewSpec
from sslpipe.methods import collectives
from sslpipe.methods.colorization import Colorization
from sslpipe.methods.dino import DINO
from sslpipe.methods.simclr import nt_xent

SIZE = 4


class Contrast(nn.Module):
    """NT-Xent on a linear encoder: no batch norm, whose statistics gloo cannot share."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 5, dtype=torch.float64)

    def forward(self, views_VBCHW):
        z1, z2 = self.linear(views_VBCHW.flatten(2))
        return nt_xent(z1, z2, temperature=0.2)


class Flat(nn.Sequential):
    dim = 6

    def maps(self, images):
        return self(images)[:, :, None, None]


def make_spec():
    return BatchSpec(SIZE, SIZE, {"global": ViewSpec(2, 3, 2, 2)}, {}, {})


def make_batch(rank, size):
    """This rank's share of four samples."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(2, SIZE, 3, 2, 2, generator=generator, dtype=torch.float64)
    views = images.chunk(size, dim=1)[rank]
    uids = torch.arange(views.shape[1])
    return Batch(
        views={"global": views}, masks={}, hidden={}, targets={}, labels=uids, params={}, uids=uids,
        keys=("",) * len(uids), valid=torch.ones(len(uids), dtype=torch.bool), epoch=0, step=0,
    )  # fmt: skip


def wrap(module):
    return DistributedDataParallel(module) if collectives.world().size > 1 else module


def contrast_step(rank, size):
    torch.manual_seed(0)
    model = Contrast()
    wrapped = wrap(model)  # DDP averages gradients only as long as its wrapper lives
    loss = wrapped(make_batch(rank, size).views["global"])
    loss.backward()
    return {"loss": collectives.all_mean(loss), "weight": model.linear.weight.grad}


def dino_steps(rank, size):
    torch.manual_seed(rank)  # DDP must give every rank, and every teacher, rank 0's weights
    encoder = Flat(nn.Flatten(), nn.Linear(12, 6))
    settings = {"prototypes": 7, "hidden": 8, "bottleneck": 4, "momentum": 0.5}
    method = DINO(encoder, make_spec(), freeze_last_layer=0.4, **settings).double()
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.5)
    methods.follow(optimizer, method, total_steps=3)
    model = wrap(method)
    for _ in range(3):
        optimizer.zero_grad()
        model(make_batch(rank, size)).loss.backward()
        optimizer.step()
    return dict(method.state_dict())


def colorization_steps(rank, size):
    """The weights of rare colours come from all ranks' pixels; batch norm is frozen by eval."""
    torch.manual_seed(0)
    targets = {"colorization": TargetSpec("global", 2, None, (2, 2, 2))}
    encoder = Flat(nn.Flatten(), nn.Linear(12, 6))
    method = Colorization(encoder, replace(make_spec(), targets=targets), decoder=(3,)).double()
    model = wrap(method.eval())
    batch = make_batch(rank, size)
    ab = {"colorization": 40 * batch.views["global"][:, :, :2]}
    losses = [collectives.all_mean(model(replace(batch, targets=ab)).loss) for _ in range(2)]
    model(replace(batch, targets=ab)).loss.backward()
    weight = method.encoder[1].weight.grad
    return {"losses": torch.stack(losses), "weight": weight, "counts": method.counts_K * size}


def results(rank, size):
    return {
        "contrast": contrast_step(rank, size),
        "dino": dino_steps(rank, size),
        "colorization": colorization_steps(rank, size),
    }


def script(folder, rank):
    """What each of the two processes does."""
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    x = torch.arange(2.0) + 10 * rank
    found = {"world": tuple(collectives.world()), "gather": collectives.gather(x)}
    torch.save({**found, **results(rank, 2)}, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_two_ranks_equal_one_on_the_joined_batch(tmp_path):
    command = [sys.executable, __file__, str(tmp_path)]
    processes = [subprocess.Popen([*command, str(rank)]) for rank in range(2)]
    try:
        expected = results(0, 1)
        assert [process.wait(60) for process in processes] == [0, 0]
    finally:
        for process in processes:  # the other one waits for ever if one fails
            process.kill()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found["world"] == (rank, 2)
        assert found["gather"].tolist() == [0.0, 1.0, 10.0, 11.0]
        for part in ("contrast", "dino", "colorization"):
            torch.testing.assert_close(found[part], expected[part], rtol=0, atol=1e-10)


def test_one_process_needs_no_group():
    x = torch.ones(3, requires_grad=True)
    assert collectives.world() == (0, 1)
    assert collectives.gather(x) is x
    mean = collectives.all_mean(x)
    assert mean.equal(x)
    assert not mean.requires_grad


if __name__ == "__main__":
    script(Path(sys.argv[1]), int(sys.argv[2]))
