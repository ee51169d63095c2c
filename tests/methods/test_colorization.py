"""Colorization: bins, soft encoding, rebalancing and loss against the official layers, written
again in NumPy."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sslpipe.batch import TargetSpec
from sslpipe.errors import ContractError
from sslpipe.methods.colorization import (
    Colorization,
    ab_bins,
    colorization_loss,
    has_colour,
    rebalancing,
    soft_encode,
)
from sslpipe.modalities.image.targets.colorization import rgb_to_lab

from .maps_encoder import MapsEncoder, NoWait

BINS = ab_bins()


@pytest.fixture
def coloured(make_batch, rand):
    targets = {"colorization": 60 * rand(1, 4, 2, 8, 8).float().tanh()}
    targets["colorization"][:, 3] *= 0.01  # the last picture is grey
    batch, spec = make_batch({"global": rand(1, 4, 3, 32, 32).float()}, targets=targets)
    return batch, replace(spec, targets={"colorization": TargetSpec("global", 1, None, (2, 8, 8))})


def build(spec, **settings):
    torch.manual_seed(0)
    return Colorization(MapsEncoder(), spec, decoder=(4,), **settings)


def slow_encode(ab, bins, neighbours, sigma):
    """NNEncode.encode_points_mtx_nd for one point: (K,)."""
    distance = np.sqrt(((bins - ab) ** 2).sum(1))
    nearest = np.argsort(distance, kind="stable")[:neighbours]
    weights = np.exp(-(distance[nearest] ** 2) / (2 * sigma**2))
    encoded = np.zeros(len(bins))
    encoded[nearest] = weights / weights.sum()
    return encoded


def dense(index, weight):
    return torch.zeros(*index.shape[:3], len(BINS), dtype=weight.dtype).scatter(-1, index, weight)


def test_there_are_313_bins_and_every_colour_is_near_one():
    assert BINS.shape == (313, 2)
    pairs = list(map(tuple, BINS.tolist()))
    assert pairs == sorted(set(pairs))  # a, then b: the order of pts_in_hull.npy
    assert (pairs[0], pairs[-1]) == ((-90, 50), (100, 0))
    assert (BINS % 10 == 0).all()
    level = torch.linspace(0, 1, 12)
    colours = torch.cartesian_prod(level, level, level).T[:, :, None]
    distance = torch.cdist(rgb_to_lab(colours)[1:, :, 0].T, BINS).amin(1)
    assert distance.max() <= 5 * math.sqrt(2) + 1e-3  # the nearest of the grid is always there


def test_as_many_b_of_each_a_as_in_the_official_file():
    counts = [5, 8, 10, 12, 14, 15, 16, 16, 17, 18, 18, 18, 19, 20, 19, 20, 20, 19, 19, 10]
    assert [int((BINS[:, 0] == a).sum()) for a in range(-90, 101, 10)] == counts


@pytest.mark.parametrize(("neighbours", "sigma"), [(10, 5.0), (5, 3.0)])
def test_soft_encoding_is_that_of_the_official_layer(rand, neighbours, sigma):
    ab = 50 * rand(2, 2, 3, 3).tanh()
    bins = BINS.double()
    made = dense(*soft_encode(ab, bins, neighbours=neighbours, sigma=sigma))
    for b, y, x in np.ndindex(2, 3, 3):
        slow = slow_encode(ab[b, :, y, x].numpy(), bins.numpy(), neighbours, sigma)
        np.testing.assert_allclose(made[b, y, x].numpy(), slow, atol=1e-12)
    index, weight = soft_encode(ab, bins)
    assert torch.equal(index[..., 0], made.argmax(-1))  # the nearest stands first
    torch.testing.assert_close(weight.sum(-1), torch.ones(2, 3, 3, dtype=torch.float64))


def test_rebalancing_is_that_of_the_official_layer():
    prior = torch.rand(313, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) ** 4
    prior[::7] = 0
    prior /= prior.sum()
    occurs = prior > 0
    mixed = 0.5 * prior[occurs] + 0.5 / occurs.sum()
    factor = 1 / mixed
    factor /= (prior[occurs] * factor).sum()
    made = rebalancing(prior, gamma=0.5)
    torch.testing.assert_close(made[occurs], factor)
    assert (made[~occurs] == 0).all()
    assert (prior * made).sum().item() == pytest.approx(1)  # the expected weight
    torch.testing.assert_close(rebalancing(prior, gamma=1.0)[occurs], torch.ones_like(factor))


def test_loss_is_eq_2_and_its_gradient_the_official_one(rand):
    logits, ab = rand(2, 313, 3, 3).requires_grad_(), 50 * rand(2, 2, 3, 3).tanh()
    rebalance = rand(2, 3, 3).abs()
    index, weight = soft_encode(ab, BINS.double())
    colorization_loss(logits, index, weight, rebalance).backward()
    z = dense(index, weight).permute(0, 3, 1, 2)
    plain = logits.detach().clone().requires_grad_()
    # ClassRebalanceMult: forward as it is, backward times the weight
    plain.register_hook(lambda grad: grad * rebalance[:, None])
    F.cross_entropy(plain, z).backward()
    torch.testing.assert_close(logits.grad, plain.grad)
    slow = -(rebalance * (z * logits.detach().log_softmax(1)).sum(1)).mean()
    made = colorization_loss(logits.detach(), index, weight, rebalance)
    assert made.item() == pytest.approx(slow.item())


def test_uniform_logits_cost_ln_313(rand):
    index, weight = soft_encode(50 * rand(1, 2, 4, 4).tanh(), BINS.double())
    loss = colorization_loss(torch.zeros(1, 313, 4, 4), index, weight, torch.ones(1, 4, 4))
    assert loss.item() == pytest.approx(math.log(313))


def test_grey_pictures_teach_nothing(coloured):
    batch, spec = coloured
    assert has_colour(batch.targets["colorization"][0]).tolist() == [True, True, True, False]
    views = batch.views["global"].requires_grad_()
    build(spec)(batch).loss.backward()
    # batch norm couples pictures: in the decoder's last layer alone they would be apart
    method = build(spec).eval()
    views.grad = None
    method(batch).loss.backward()
    assert views.grad[0, 3].abs().max() == 0
    assert views.grad[0, 0].abs().max() > 0


def test_the_prior_counts_all_colours_of_the_run(coloured):
    batch, spec = coloured
    method = build(spec)
    index, _ = soft_encode(batch.targets["colorization"][0], BINS)
    counts = torch.bincount(index[..., 0].flatten(), minlength=313).double()
    method(batch)
    torch.testing.assert_close(method.counts_K, counts)
    method(batch)
    torch.testing.assert_close(method.counts_K, 2 * counts)
    assert "counts_K" in method.state_dict()  # a resume goes on with it
    nearest = index[..., 0]
    weights = method.rebalance(nearest)
    assert weights.mean().item() == pytest.approx(1, abs=1e-5)
    expected = rebalancing(counts / counts.sum(), gamma=0.5)[nearest].float()
    torch.testing.assert_close(weights, expected)  # of the colours in the run so far
    often = counts[nearest] == counts.max()
    assert weights[often].max() < weights[~often].min()  # rare colours weigh more


def test_gradients_reach_all_nothing_waits_and_one_batch_is_learned(coloured):
    batch, spec = coloured
    method = build(spec)
    optimizer = torch.optim.Adam(method.parameters(), 0.02)
    with NoWait():
        first = method(batch)
        first.loss.backward()
        method.after_step(1.0)
    assert all(p.grad is not None for p in method.parameters())
    assert not first.metrics["accuracy"].requires_grad
    for _ in range(30):
        optimizer.zero_grad()
        last = method(batch)
        last.loss.backward()
        optimizer.step()
    assert last.loss < 0.8 * first.loss


def test_what_it_needs_is_said_at_construction(coloured, encoder):
    _, spec = coloured
    with pytest.raises(ContractError, match=r"needs an encoder with maps.* gives none\. Set train"):
        Colorization(encoder, spec)
    wrong = replace(spec, targets={"colorization": TargetSpec("global", 1, 4)})
    with pytest.raises(ContractError, match=r"needs targets of shape \(2, h, w\)"):
        Colorization(MapsEncoder(), wrong)
    with pytest.raises(ValueError, match=r"sigma = 0\.0; set what is above 0"):
        build(spec, sigma=0.0)
    with pytest.raises(ValueError, match=r"neighbours = 314; set it in \[1, 313\]"):
        build(spec, neighbours=314)
