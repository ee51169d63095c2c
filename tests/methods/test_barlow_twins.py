import pytest
import torch
from torch import nn

from sslpipe.methods import barlow_twins
from sslpipe.methods.barlow_twins import barlow_twins_loss

SMALL = {"projector": (12, 12, 5)}


def slow_loss(z1, z2, redundancy):
    """Zbontar et al. 2021, eq. 1 and 2, with loops; standardised as by BatchNorm1d."""
    count, dim = z1.shape
    means = [[float(z[:, i].mean()) for i in range(dim)] for z in (z1, z2)]
    stds = [
        [(float(z[:, i].var(correction=0)) + 1e-5) ** 0.5 for i in range(dim)] for z in (z1, z2)
    ]
    loss = 0.0
    for i in range(dim):
        for j in range(dim):
            c = 0.0
            for a, b in zip(z1[:, i].tolist(), z2[:, j].tolist(), strict=True):
                c += (a - means[0][i]) / stds[0][i] * (b - means[1][j]) / stds[1][j] / count
            loss += (c - 1) ** 2 if i == j else redundancy * c**2
    return loss


@pytest.mark.parametrize("redundancy", [0.0051, 0.5])
def test_loss_is_equation_1(rand, redundancy):
    z1, z2 = rand(7, 4), rand(7, 4)
    loss = barlow_twins_loss(z1, z2, redundancy=redundancy)
    assert loss.item() == pytest.approx(slow_loss(z1, z2, redundancy), abs=1e-9)
    single = barlow_twins_loss(z1.float(), z2.float(), redundancy=redundancy)
    assert single.item() == pytest.approx(loss.item(), abs=1e-4)


def test_it_is_the_official_batch_norm_and_its_gradient_is_right(rand):
    z1, z2 = rand(7, 4).requires_grad_(), rand(7, 4).requires_grad_()
    norm = nn.BatchNorm1d(4, affine=False).double()
    c = norm(z1).T @ norm(z2) / 7
    torch.testing.assert_close(barlow_twins.cross_correlation(z1, z2), c)
    assert torch.autograd.gradcheck(lambda a, b: barlow_twins_loss(a, b, redundancy=0.1), (z1, z2))


def test_collapse_and_perfection(rand):
    constant = rand(1, 6).expand(8, 6)
    assert barlow_twins_loss(constant, constant, redundancy=0.0051).item() == pytest.approx(6)
    # columns of a Hadamard matrix: unit variance and no correlation
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    z = torch.kron(torch.kron(signs, signs), signs)[:, 1:]
    assert barlow_twins_loss(z, z, redundancy=1.0).item() == pytest.approx(0, abs=1e-8)


def test_shift_and_scale_of_features_do_not_matter(rand):
    z1, z2 = 10.0 * rand(7, 4), 10.0 * rand(7, 4)
    moved = barlow_twins_loss(z1 * 3.0 + 5.0, z2 * 7.0 - 1.0, redundancy=0.1)
    torch.testing.assert_close(moved, barlow_twins_loss(z1, z2, redundancy=0.1), rtol=1e-5, atol=0)


def test_off_diagonal_is_all_but_the_diagonal():
    x = torch.arange(16.0).view(4, 4)
    rest = barlow_twins.off_diagonal(x)
    assert sorted(rest.flatten().tolist()) == [v for v in range(16) if v % 5]


def test_loss_stays_fp32_under_autocast(rand):
    z1, z2 = rand(5, 4).float(), rand(5, 4).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = barlow_twins_loss(z1, z2, redundancy=0.1)
    assert loss.equal(barlow_twins_loss(z1, z2, redundancy=0.1))


def test_method_and_head_are_the_official_ones(encoder, views):
    batch, spec = views
    method = barlow_twins.BarlowTwins(encoder, spec, **SMALL)
    block = ["Linear", "BatchNorm1d", "ReLU"]
    assert [type(part).__name__ for part in method.projector] == [*block, *block, "Linear"]
    assert all(p.bias is None for p in method.projector if isinstance(p, nn.Linear))
    z1, z2 = (method.projector(encoder(x)) for x in batch.views["global"])
    torch.testing.assert_close(method(batch).loss, barlow_twins_loss(z1, z2, redundancy=0.0051))
    assert encoder.calls == [(4, 3, 8, 8)] * 4
