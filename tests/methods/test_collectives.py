"""Two gloo processes on halves of a batch against one process on the whole.

The processes run this module by its name, so that nothing depends on how pytest imports it.
"""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sslpipe import backbones, methods
from sslpipe.batch import Batch, BatchSpec, MaskSpec, TargetSpec, ViewSpec
from sslpipe.lookup import Entry
from sslpipe.methods import collectives
from sslpipe.methods.barlow_twins import BarlowTwins
from sslpipe.methods.byol import BYOL
from sslpipe.methods.colorization import Colorization
from sslpipe.methods.koleo import koleo_loss
from sslpipe.methods.moco import MoCo
from sslpipe.methods.moco_v3 import MoCoV3
from sslpipe.methods.simclr import nt_xent
from sslpipe.methods.simsiam import SimSiam
from sslpipe.methods.vicreg import VICReg

from . import masked

SIZE = 4
PREDICTOR = {"projector": (8, 5), "predictor_hidden": 4}
# of the losses that compare samples or keep a memory, and of those that do neither
TWO_VIEWS = {
    "barlow_twins": (BarlowTwins, {"projector": (8, 5)}),
    "byol": (BYOL, PREDICTOR | {"momentum": 0.5}),
    "moco": (MoCo, {"projector": (8, 5), "queue": 8, "momentum": 0.5, "bn_groups": 2}),
    "moco_v3": (MoCoV3, PREDICTOR | {"momentum": 0.5, "freeze_patches": False}),
    "simsiam": (SimSiam, PREDICTOR),
    "vicreg": (VICReg, {"projector": (8, 5)}),
}
ROOT = Path(__file__).parents[2]


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


def make_spec(size=1):
    masks = {"blocks": MaskSpec("global", 2, 1, (2, 2), None)}
    return BatchSpec(SIZE // size, SIZE, {"global": ViewSpec(2, 3, 2, 2)}, masks, {})


def make_batch(rank, size):
    """This rank's share of four samples."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(2, SIZE, 3, 2, 2, generator=generator, dtype=torch.float64)
    views = images.chunk(size, dim=1)[rank]
    # 3, 0, 0 and 0 patches in view 0, 1, 4, 0 and 0 in view 1: the second rank has none to guess
    counts = torch.tensor([[3, 0, 0, 0], [1, 4, 0, 0]])
    masks = (torch.arange(4) < counts[..., None]).chunk(size, dim=1)[rank]
    uids = torch.arange(views.shape[1])
    return Batch(
        views={"global": views}, masks={"blocks": masks}, hidden={"blocks": masks.sum(-1).numpy()},
        targets={}, labels=uids, params={}, uids=uids, keys=("",) * len(uids),
        valid=torch.ones(len(uids), dtype=torch.bool), epoch=0, step=0,
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


SMALL = {"prototypes": 7, "hidden": 8, "bottleneck": 4, "momentum": 0.5, "freeze_last_layer": 0.4}


def flat():
    return Flat(nn.Flatten(), nn.Linear(12, 6))


def vit():
    settings = {"patch_size": 1, "embed_dim": 12, "depth": 1, "num_heads": 2}
    return backbones.build(Entry("vit_tiny", settings), image_size=2)


def steps(rank, size, name, make_encoder, **settings):
    """What three steps make of a method."""
    torch.manual_seed(rank)  # DDP must give every rank, and every teacher, rank 0's weights
    entry = Entry(name, SMALL | settings)
    method = methods.build(entry, make_encoder(), make_spec()).double()
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.5)
    methods.follow(optimizer, method, total_steps=3)
    model = wrap(method)
    for _ in range(3):
        optimizer.zero_grad()
        model(make_batch(rank, size)).loss.backward()
        optimizer.step()
    return dict(method.state_dict())


def without_batch_norm(module):
    """Gloo has no SyncBatchNorm; MoCo's groups, which need none, stay."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d):
            setattr(module, name, nn.Identity())
        without_batch_norm(child)
    return module


def two_view_steps(name, rank, size):
    """Weights, queue and losses of three steps, the first of them with its gradients."""
    torch.manual_seed(0)
    build, settings = TWO_VIEWS[name]
    encoder = Flat(nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6))
    method = without_batch_norm(build(encoder, make_spec(size), **settings)).double()
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.1)
    methods.follow(optimizer, method, total_steps=3)
    model, losses = wrap(method), []
    for step in range(3):
        optimizer.zero_grad()
        loss = model(replace(make_batch(rank, size), step=step)).loss
        loss.backward()
        losses.append(collectives.all_mean(loss))
        if step == 0:
            gradients = [p.grad.clone() for p in method.parameters() if p.requires_grad]
        optimizer.step()
    # running statistics of groups are rank 0's, as DDP has it
    state = {k: v for k, v in method.state_dict().items() if "running" not in k}
    return {"losses": losses, "gradients": gradients, "state": state}


def masked_step(name, rank, size):
    """Loss and gradients where ranks hide different numbers of patches."""
    entry = Entry(name, masked.SETTINGS[name])
    method = methods.build(entry, masked.vit(), masked.spec_of(SIZE)).double()
    model = wrap(method)
    loss = model(masked.batch_of(rank, size, size=SIZE, dtype=torch.float64)).loss
    loss.backward()
    grads = {k: p.grad for k, p in method.named_parameters() if p.requires_grad}
    return {"loss": collectives.all_mean(loss), **grads}


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
    # without KoLeo, whose neighbours are those of a rank
    sinkhorn = {"koleo_weight": 0.0, "centering": "sinkhorn", "heads": "separate"}
    found = {
        "contrast": contrast_step(rank, size),
        "colorization": colorization_steps(rank, size),
        "dino": steps(rank, size, "dino", flat),
        "ibot": steps(rank, size, "ibot", vit),
        "dinov2": steps(rank, size, "dinov2", vit, koleo_weight=0.0),
        "sinkhorn": steps(rank, size, "dinov2", vit, **sinkhorn),
    }
    found |= {name: masked_step(name, rank, size) for name in masked.SETTINGS}
    return found | {name: two_view_steps(name, rank, size) for name in TWO_VIEWS}


def koleo(rank):
    """Of one rank's two samples: officially, nothing is gathered for it."""
    return koleo_loss(make_batch(rank, 2).views["global"][0].flatten(1))


def script(folder, rank):
    """What each of the two processes does."""
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    x = torch.arange(2.0) + 10 * rank
    found = {"world": tuple(collectives.world()), "gather": collectives.gather(x)}
    found["koleo"] = koleo(rank)
    torch.save({**found, **results(rank, 2)}, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_two_ranks_equal_one_on_the_joined_batch(tmp_path):
    command = [sys.executable, "-m", "tests.methods.test_collectives", str(tmp_path)]
    processes = [subprocess.Popen([*command, str(rank)], cwd=ROOT) for rank in range(2)]
    try:
        expected = results(0, 1)
        assert [process.wait(120) for process in processes] == [0, 0]
    finally:
        for process in processes:  # the other one waits for ever if one fails
            process.kill()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found["world"] == (rank, 2)
        assert found["koleo"].equal(koleo(rank))
        assert found["gather"].tolist() == [0.0, 1.0, 10.0, 11.0]
        for part, state in expected.items():
            torch.testing.assert_close(found[part], state, rtol=0, atol=1e-10)


def test_one_process_needs_no_group():
    x = torch.ones(3, requires_grad=True)
    assert collectives.world() == (0, 1)
    assert collectives.gather(x) is x
    mean = collectives.all_mean(x)
    assert mean.equal(x)
    assert not mean.requires_grad


if __name__ == "__main__":
    script(Path(sys.argv[1]), int(sys.argv[2]))
