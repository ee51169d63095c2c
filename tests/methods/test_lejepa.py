import cmath
import math
from dataclasses import replace

import pytest
import torch

from sslpipe.methods import lejepa

SMALL = {"projector": (16, 8), "slices": 32}


def slow_epps_pulley(samples, knots, limit):
    """N times the integral of |ecf - cf|^2 exp(-t^2/2) over [-limit, limit], by trapezoids."""
    step = 2 * limit / (2 * knots - 2)
    times = [-limit + i * step for i in range(2 * knots - 1)]

    def integrand(t):
        ecf = sum(cmath.exp(1j * t * x) for x in samples) / len(samples)
        return abs(ecf - math.exp(-(t**2) / 2)) ** 2 * math.exp(-(t**2) / 2)

    values = [integrand(t) for t in times]
    return len(samples) * step * (sum(values) - (values[0] + values[-1]) / 2)


@pytest.mark.parametrize(("knots", "limit"), [(17, 3.0), (9, 5.0)])
def test_statistic_is_the_integral(rand, knots, limit):
    x = rand(2, 6, 3)
    found = lejepa.epps_pulley(x, knots=knots, limit=limit)
    for v in range(2):
        for m in range(3):
            slow = slow_epps_pulley(x[v, :, m].tolist(), knots, limit)
            assert found[v, m].item() == pytest.approx(slow, abs=1e-9)


def test_statistic_is_small_for_gaussians_and_large_for_all_else(rand):
    gauss = rand(1, 4000, 8)
    normal = lejepa.epps_pulley(gauss).mean()
    for other in (gauss * 0, gauss * 2, gauss + 1, gauss.sign(), (gauss.abs() - 0.8) / 0.6):
        assert lejepa.epps_pulley(other).mean() > 20 * normal
    # under N(0, 1) its mean is (1 - phi^2) w integrated, whatever the number of samples
    t = torch.linspace(-3, 3, 33, dtype=torch.float64)
    expected = torch.trapezoid((1 - torch.exp(-t.square())) * torch.exp(-t.square() / 2), t)
    assert normal.item() == pytest.approx(expected.item(), rel=0.5)


def test_slices_are_directions_and_a_function_of_the_step():
    slices = lejepa.random_slices(6, 9, step=4)
    torch.testing.assert_close(slices.norm(dim=0), torch.ones(9))
    torch.rand(3)  # the global generator has no say
    assert lejepa.random_slices(6, 9, step=4).equal(slices)
    assert not lejepa.random_slices(6, 9, step=5).equal(slices)


def test_prediction_pulls_all_views_to_the_mean_of_the_global_ones(rand):
    z = rand(5, 3, 4)
    centre = (z[0] + z[1]) / 2
    slow = sum((z[v] - centre).square().sum() for v in range(5)) / z.numel()
    torch.testing.assert_close(lejepa.prediction_loss(z, 2), slow)
    assert lejepa.prediction_loss(z[:1].expand(5, 3, 4), 2).item() == pytest.approx(0)


def test_gradients_are_right(rand):
    z = rand(3, 4, 5).requires_grad_()
    slices = lejepa.random_slices(5, 3, step=0).double()
    assert torch.autograd.gradcheck(lambda x: lejepa.sigreg(x, slices), (z,))
    assert torch.autograd.gradcheck(lambda x: lejepa.prediction_loss(x, 2), (z,))


def test_collapse_is_the_worst_that_sigreg_knows(rand):
    slices = lejepa.random_slices(5, 64, step=0).double()
    collapsed = lejepa.sigreg(torch.zeros(2, 64, 5, dtype=torch.float64), slices)
    t = torch.linspace(-3, 3, 33, dtype=torch.float64)
    phi = torch.exp(-t.square() / 2)
    expected = 64 * torch.trapezoid((1 - phi).square() * phi, t)
    torch.testing.assert_close(collapsed, expected)
    assert collapsed > 10 * lejepa.sigreg(rand(2, 64, 5), slices)


def test_forward_weighs_both_terms(encoder, make_batch, rand):
    batch, spec = make_batch(
        {"global": rand(2, 4, 3, 8, 8).float(), "local": rand(3, 4, 3, 4, 4).float()}
    )
    method = lejepa.LeJEPA(encoder, spec, **SMALL, weight=0.2)
    batch = replace(batch, step=7)
    output = method(batch)
    z = method.embedder(batch.views)
    gauss = lejepa.sigreg(z, lejepa.random_slices(8, 32, step=7))
    torch.testing.assert_close(output.loss, 0.8 * lejepa.prediction_loss(z, 2) + 0.2 * gauss)
    torch.testing.assert_close(output.metrics["sigreg"], gauss.detach())
    output.loss.backward()
    assert all(p.grad.isfinite().all() for p in method.parameters())
    assert not any(metric.requires_grad for metric in output.metrics.values())
    assert not method(replace(batch, step=8)).loss.equal(output.loss)


def test_training_turns_a_collapsed_embedding_into_a_gaussian(rand):
    z = torch.nn.Parameter(rand(1, 256, 4) * 0.01)
    optimizer = torch.optim.Adam([z], 0.05)
    for step in range(150):
        optimizer.zero_grad()
        lejepa.sigreg(z, lejepa.random_slices(4, 32, step=step).double()).backward()
        optimizer.step()
    covariance = torch.cov(z.detach()[0].T)
    torch.testing.assert_close(covariance, torch.eye(4, dtype=torch.float64), rtol=0, atol=0.15)
    assert z.mean((0, 1)).abs().max() < 0.1
