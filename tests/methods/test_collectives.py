"""Two gloo processes on halves of a batch against one process on the whole, for every method.

The processes run this module by its name, so that nothing depends on how pytest imports it.
"""

import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn

from sslpipe import methods
from sslpipe.methods.clip import clip_loss
from sslpipe.methods.dinov2 import koleo_loss
from sslpipe.methods.electra import replaced_loss
from sslpipe.methods.parts import collectives
from sslpipe.methods.parts.sinkhorn import sinkhorn_knopp
from sslpipe.methods.siglip import siglip_loss
from sslpipe.methods.simcse import simcse_loss
from sslpipe.process import group_ranks
from sslpipe.train import replicas

from .every_method import build, make_batch, make_spec

ROOT = Path(__file__).parents[2]
# draws of their own, which differ from rank to rank as dropout does: their losses are compared
DRAWN = {"electra", "simcse", "wav2vec2"}
NAMES = sorted(methods.METHODS.keys() - DRAWN)
SIZE, STEPS = 4, 3
# What a joined batch would change, and why:
LOCAL = {"dinov2": {"koleo_weight": 0.0}}  # KoLeo's neighbours are a rank's own, as officially
RANK_0 = ("running_mean", "running_var", "num_batches_tracked")  # of MoCo's groups, as under DDP
PER_RANK = {"counts_K"}  # colours counted per rank: half as many on two, in the same proportions


class Grouped(nn.Sequential):
    """With a batch norm that MoCo splits into groups."""

    dim = 6

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(768, 6), nn.BatchNorm1d(6))


def wrap(module, rank, size, device="cpu"):
    """As the trainer does for that device."""
    return replicas.replicate(
        module, SimpleNamespace(rank=rank, world_size=size, device=torch.device(device))
    )


def steps(name, rank, size):
    """Losses of three steps, gradients of each, and what is left: weights, queues, centres."""
    torch.manual_seed(rank)  # all must start from rank 0's weights and queues
    encoder = Grouped() if name == "moco" else None
    method = build(name, make_spec(SIZE, size), encoder, **LOCAL.get(name, {}))
    method = method.double()
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.1)
    methods.follow(optimizer, method, total_steps=STEPS)
    model, losses, gradients = wrap(method, rank, size), [], []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = model(make_batch(SIZE, step, rank, size, torch.float64)).loss
        loss.backward()
        losses.append(collectives.all_mean(loss))
        gradients.append([p.grad.clone() for p in method.parameters() if p.requires_grad])
        optimizer.step()
    own = RANK_0 if name == "moco" else ()
    state = {k: v for k, v in method.state_dict().items() if not k.endswith(own)}
    state |= {k: size * state[k] for k in PER_RANK & set(state)}
    return {"losses": losses, "gradients": gradients, "state": state}


def sinkhorn(rank, size):
    scores = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).double()
    own = (slice(0, 6) if size == 1 else slice(0, 2), slice(2, 6))[rank]  # 2 samples and 4
    return sinkhorn_knopp(scores[own], epsilon=0.3)


def buffers_of_a_rank(rank):
    """A buffer as built, as the wrapper leaves it, and what a forward pass makes of another."""
    norm = nn.BatchNorm1d(2)
    norm.running_mean.fill_(rank)
    model = wrap(norm, rank, 2)
    start = norm.running_mean.clone()
    norm.running_mean.fill_(5.0 + rank)
    model.eval()(torch.zeros(2, 2))
    return start.tolist(), norm.running_mean.tolist()


def koleo(rank):
    """Of one rank's samples: officially, nothing is gathered for it."""
    own = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))[rank]
    return koleo_loss(own)


def losses_of_text(rank, size):
    """SimCSE's loss and ELECTRA's, and their gradients, of a share of 6 rows of 5 tokens."""
    generator = torch.Generator().manual_seed(0)
    z_2BD = torch.randn(2, 6, 4, generator=generator).double()
    scores_BL = torch.randn(6, 5, generator=generator).double()
    replaced_BL = torch.rand(6, 5, generator=generator) < 0.3
    real_BL = torch.arange(5) < torch.arange(6)[:, None]  # 0 to 5 of them
    own = slice(rank * 6 // size, (rank + 1) * 6 // size)
    given = [x.clone().requires_grad_() for x in (z_2BD[0, own], z_2BD[1, own], scores_BL[own])]
    losses = [
        simcse_loss(*given[:2], temperature=0.2),
        replaced_loss(given[2], replaced_BL[own], real_BL[own]),
    ]
    gradients = torch.autograd.grad(sum(losses), given)
    gathered = [collectives.gather(g / size) for g in gradients]
    return [collectives.all_mean(loss) for loss in losses], gathered


def wav2vec2_without_noise(rank, size):
    """Its loss and gradients in evaluation mode; the second rank has a waveform that ends early."""
    torch.manual_seed(0)
    method = build("wav2vec2", make_spec(SIZE, size)).double()
    model = wrap(method, rank, size).eval()
    loss = model(make_batch(SIZE, 0, rank, size, torch.float64)).loss
    loss.backward()
    return collectives.all_mean(loss), {n: p.grad for n, p in method.named_parameters()}


def pairs(rank, size):
    """Gradients of CLIP's and SigLIP's losses, the mean over ranks, of a share of 6 pairs.

    Beside ours the two wrong ways to gather: of all pairs' loss, and of this rank's, without the
    gradient of other ranks' embeddings.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator).double()

    seen, read = normal(6, 5), normal(6, 4)
    weights = [normal(5, 3), normal(4, 3), torch.tensor(3.0).double(), torch.tensor(-1.0).double()]
    own = slice(rank * 6 // size, (rank + 1) * 6 // size)

    def apart(z):
        parts = list(collectives.gather(z.detach()).chunk(size))
        parts[rank] = z
        return torch.cat(parts)

    def without(image, text, *, scale, local):
        image, text = (nn.functional.normalize(z, dim=1) for z in (image, text))
        rows = (image, text) if local else (apart(image), apart(text))
        logits = scale * rows[0] @ apart(text).T, scale * rows[1] @ apart(image).T
        labels = (torch.arange(6)[own]) if local else torch.arange(6)
        return sum(nn.functional.cross_entropy(each, labels) for each in logits) / 2

    def gradients(loss):
        w_image, w_text, scale, bias = [w.clone().requires_grad_() for w in weights]
        value = loss(seen[own] @ w_image, read[own] @ w_text, scale=scale, bias=bias)
        given = torch.autograd.grad(value, (w_image, w_text, scale, bias), allow_unused=True)
        return [collectives.all_mean(g) for g in (value, *given) if g is not None]

    return {
        "clip": gradients(lambda i, t, scale, bias: clip_loss(i, t, scale=scale)),
        "clip in chunks": gradients(
            lambda i, t, scale, bias: clip_loss(i, t, scale=scale, chunk=2)
        ),
        "siglip": gradients(siglip_loss),
        "siglip in chunks": gradients(partial(siglip_loss, chunk=2)),
        "global": gradients(lambda i, t, scale, bias: without(i, t, scale=scale, local=False)),
        "local": gradients(lambda i, t, scale, bias: without(i, t, scale=scale, local=True)),
    }


def script(folder, rank):
    """What each of the two processes does."""
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    gathered = collectives.gather(torch.arange(2.0) + 10 * rank)
    found = {name: steps(name, rank, 2) for name in NAMES}
    found |= {
        "world": tuple(group_ranks())[:2], "gather": gathered, "sinkhorn": sinkhorn(rank, 2),
        "losses_of_text": losses_of_text(rank, 2), "wav2vec2": wav2vec2_without_noise(rank, 2),
        "pairs": pairs(rank, 2),
        "buffers": buffers_of_a_rank(rank), "koleo": koleo(rank),
    }  # fmt: skip
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What the two processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "tests.methods.test_collectives", str(folder)]
    processes = [subprocess.Popen([*command, str(rank)], cwd=ROOT) for rank in range(2)]
    try:
        assert [process.wait(120) for process in processes] == [0, 0]
    finally:
        for process in processes:  # the other one waits for ever if one fails
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_equal_one_on_the_joined_batch(name, ranks):
    """Also that no queue, centre or memory parts ways: nothing sends them after the start.

    timm resizes positions in float32 for small crops, else all is float64.
    """
    expected = steps(name, 0, 1)
    assert all(loss != 0 for loss in expected["losses"][1:])
    for found in ranks:
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-7)


def test_losses_of_drawing_methods_on_two_ranks_are_those_of_one(ranks):
    expected = losses_of_text(0, 1)
    for found in ranks:
        torch.testing.assert_close(found["losses_of_text"], expected, rtol=0, atol=1e-10)


def test_wav2vec2_on_two_ranks_is_that_of_one(ranks):
    expected = wav2vec2_without_noise(0, 1)
    for found in ranks:
        torch.testing.assert_close(found["wav2vec2"], expected, rtol=0, atol=1e-9)


PAIRS = ("clip", "clip in chunks", "siglip", "siglip in chunks")


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_on_two_ranks_have_the_gradient_of_one_process(name, ranks):
    expected = pairs(0, 1)[name.removesuffix(" in chunks")]
    for found in ranks:
        torch.testing.assert_close(found["pairs"][name], expected, rtol=0, atol=1e-12)


def test_to_gather_without_gradient_halves_or_turns_it(ranks):
    """Naive errors: half of the gradient, which Adam hides, and another direction."""
    expected = pairs(0, 1)["clip"]
    found = ranks[0]["pairs"]
    for name in ("global", "local"):
        torch.testing.assert_close(found[name][0], expected[0])  # the loss tells nothing of it
    for half, whole in zip(found["global"][1:3], expected[1:3], strict=True):
        torch.testing.assert_close(half, whole / 2)
    turned = nn.functional.cosine_similarity(found["local"][1].flatten(), expected[1].flatten(), 0)
    assert turned < 0.999


def test_buffers_are_rank_0_s_at_the_start_and_never_travel_again(ranks):
    assert [found["buffers"][0] for found in ranks] == [[0.0, 0.0]] * 2
    assert [found["buffers"][1] for found in ranks] == [[5.0, 5.0], [6.0, 6.0]]


def test_on_gpus_batch_norm_is_synchronised_and_moco_s_groups_stay(monkeypatch):
    method = build("moco", make_spec(SIZE, 2), Grouped())
    method.query[1].append(nn.BatchNorm1d(8))
    # there is no DDP of SyncBatchNorm without GPUs
    monkeypatch.setattr(replicas, "DistributedDataParallel", lambda module: SimpleNamespace())
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    wrap(method, 0, 2, device="cuda")
    norms = [type(norm).__name__ for norm in (method.query[0][2], method.query[1][-1])]
    assert norms == ["GroupedBatchNorm", "SyncBatchNorm"]


def test_collectives(ranks):
    for rank, found in enumerate(ranks):
        assert found["world"] == (rank, 2)
        assert found["koleo"].equal(koleo(rank))
        assert found["gather"].tolist() == [0.0, 1.0, 10.0, 11.0]
    joined = torch.cat([found["sinkhorn"] for found in ranks])
    torch.testing.assert_close(joined, sinkhorn(0, 1), rtol=0, atol=1e-12)


def test_one_process_needs_no_group():
    x = torch.ones(3, requires_grad=True)
    assert group_ranks() == (0, 1, 0)
    assert collectives.gather(x) is x
    mean = collectives.all_mean(x)
    assert mean.equal(x)
    assert not mean.requires_grad


if __name__ == "__main__":
    script(Path(sys.argv[1]), int(sys.argv[2]))
