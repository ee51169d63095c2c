"""tools/bench/lightly_peer.py compares like with like: the gradients of its losses are ours."""

import pytest
import torch
from torch import nn

from sslpipe.methods.barlow_twins import barlow_twins_loss
from sslpipe.methods.byol import byol_loss
from sslpipe.methods.simclr import nt_xent
from sslpipe.methods.vicreg import vicreg_loss

from ..conftest import load_tool

WIDTHS = {"projector": (6, 6, 6)}
SETTINGS = {
    "barlow_twins": WIDTHS | {"redundancy": 0.02},
    "byol": {"projector": (6, 6), "predictor_hidden": 4, "momentum": 0.9},
    "simclr": {"projector": (6, 6), "temperature": 0.3},
    "vicreg": WIDTHS,
}
OURS = {
    "barlow_twins": lambda z1, z2: barlow_twins_loss(z1, z2, redundancy=0.02),
    "byol": lambda p1, p2, z1, z2: byol_loss(p1, z2) + byol_loss(p2, z1),
    "simclr": lambda z1, z2: nt_xent(z1, z2, temperature=0.3),
    "vicreg": vicreg_loss,
}


@pytest.fixture(scope="module")
def bench():
    """tools/bench/lightly_peer.py as a module."""
    return load_tool("lightly_peer")


class Encoder(nn.Linear):
    """Images of 5 values."""

    dim = 6


@pytest.mark.parametrize("name", OURS)
def test_a_rate_means_the_same_to_both(bench, name):
    torch.manual_seed(0)
    peer, _ = bench.PEERS[name](Encoder(5, 6), SETTINGS[name])
    views = [torch.randn(8, 5, requires_grad=True) for _ in range(2)]
    embeddings = peer(views)
    theirs = torch.autograd.grad(peer.loss_of(embeddings), views, retain_graph=True)
    ours = torch.autograd.grad(OURS[name](*embeddings), views)
    for a, b in zip(theirs, ours, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert len(bench.PEERS) == len(OURS)
