import pytest
import torch

from sslpipe.methods import vicreg
from sslpipe.methods.vicreg import vicreg_loss, vicreg_terms

SMALL = {"projector": (12, 12, 5)}


def slow_terms(x, y):
    """Bardes et al. 2021, eq. 1 to 5 with the scales of main_vicreg.py, with loops."""
    count, dim = x.shape
    invariance = sum(float((x[n, d] - y[n, d]) ** 2) for n in range(count) for d in range(dim))
    variance = covariance = 0.0
    for z in (x, y):
        centred = [[float(z[n, d] - z[:, d].mean()) for d in range(dim)] for n in range(count)]
        for i in range(dim):
            for j in range(dim):
                c = sum(row[i] * row[j] for row in centred) / (count - 1)
                if i == j:
                    variance += max(0.0, 1 - (c + 1e-4) ** 0.5) / dim / 2
                else:
                    covariance += c**2 / dim
    return invariance / count / dim, variance, covariance


def test_loss_is_equation_6_as_coded(rand):
    x, y = rand(7, 4), 0.5 * rand(7, 4)
    slow = slow_terms(x, y)
    assert [float(term) for term in vicreg_terms(x, y)] == pytest.approx(slow, abs=1e-9)
    loss = vicreg_loss(x, y)
    assert loss.item() == pytest.approx(25 * slow[0] + 25 * slow[1] + slow[2], abs=1e-9)
    weighted = vicreg_loss(x, y, invariance=1.0, variance=2.0, covariance=3.0)
    assert weighted.item() == pytest.approx(slow[0] + 2 * slow[1] + 3 * slow[2], abs=1e-9)
    assert vicreg_loss(x.float(), y.float()).item() == pytest.approx(loss.item(), abs=1e-4)


def test_collapse_costs_24_75_and_its_gradient_is_finite(rand):
    x = rand(1, 6).expand(8, 6).clone().requires_grad_()
    loss = vicreg_loss(x, x.detach())
    assert loss.item() == pytest.approx(24.75)
    loss.backward()
    assert x.grad.isfinite().all()


def test_a_shift_of_both_views_does_not_matter(rand):
    x, y, shift = rand(7, 4), rand(7, 4), rand(1, 4)
    torch.testing.assert_close(vicreg_loss(x + shift, y + shift), vicreg_loss(x, y))


def test_gradient_is_right_and_reaches_both_views(rand):
    x, y = (0.3 * rand(5, 4)).requires_grad_(), (0.3 * rand(5, 4)).requires_grad_()
    assert torch.autograd.gradcheck(vicreg_loss, (x, y))


def test_method_and_head_are_the_official_ones(encoder, views):
    batch, spec = views
    method = vicreg.VICReg(encoder, spec, **SMALL, covariance=2.0)
    block = ["Linear", "BatchNorm1d", "ReLU"]
    assert [type(part).__name__ for part in method.projector] == [*block, *block, "Linear"]
    assert [method.projector[i].bias is None for i in (0, 3, 6)] == [False, False, True]
    output = method(batch)
    z1, z2 = (method.projector(encoder(x)) for x in batch.views["global"])
    torch.testing.assert_close(output.loss, vicreg_loss(z1, z2, covariance=2.0))
    terms = vicreg_terms(z1.detach(), z2.detach())._asdict()
    torch.testing.assert_close({name: output.metrics[name] for name in terms}, terms)
    assert not any(metric.requires_grad for metric in output.metrics.values())
