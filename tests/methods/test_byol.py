import copy

import pytest
import torch
from torch import nn

from sslpipe.methods import byol
from sslpipe.methods.parts import teachers

from .conftest import Normed

SMALL = {"projector": (12, 5), "predictor_hidden": 9}


def test_loss_is_equation_2(rand):
    p, z = rand(5, 4), rand(5, 4)
    pairs = zip(p, z, strict=True)
    slow = sum(float((a / a.norm() - b / b.norm()).pow(2).sum()) for a, b in pairs) / 5
    assert byol.byol_loss(p, z).item() == pytest.approx(slow, abs=1e-9)
    cosine = nn.functional.cosine_similarity(p, z).mean().item()
    assert byol.byol_loss(p, z).item() == pytest.approx(2 - 2 * cosine, abs=1e-9)
    torch.testing.assert_close(byol.byol_loss(p * 5.0, z * 0.1), byol.byol_loss(p, z))
    assert byol.byol_loss(p, p).item() == pytest.approx(0, abs=1e-12)
    assert byol.byol_loss(p, -p).item() == pytest.approx(4)


def test_vectors_of_length_zero_are_normalised_as_officially():
    p = torch.tensor([[1e-7, 0.0]], requires_grad=True)
    loss = byol.byol_loss(p, torch.tensor([[0.0, 1.0]]))  # 1e-7 / sqrt(1e-12) = 0.1
    assert loss.item() == pytest.approx(0.01 + 1.0)
    loss.backward()
    assert p.grad.isfinite().all()


def test_the_target_takes_no_gradient(rand):
    p, z = rand(5, 4).requires_grad_(), rand(5, 4).requires_grad_()
    byol.byol_loss(p, z).backward()
    assert z.grad is None
    assert p.grad.abs().sum() > 0


def test_both_directions_are_added_and_only_the_online_side_predicts(encoder, views):
    batch, spec = views
    method = byol.BYOL(encoder, spec, **SMALL)
    reference = copy.deepcopy(method)
    x1, x2 = batch.views["global"]
    p1, p2 = (reference.predictor(reference.online(x)) for x in (x1, x2))
    z1, z2 = (reference.target(x) for x in (x1, x2))
    expected = byol.byol_loss(p1, z2) + byol.byol_loss(p2, z1)
    torch.testing.assert_close(method(batch).loss, expected)
    assert encoder.calls == [(4, 3, 8, 8)] * 2


def test_the_target_trains_no_weight_and_keeps_statistics_of_its_own(views):
    batch, spec = views
    method = byol.BYOL(Normed(), spec, **SMALL).train()
    method(batch).loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in method.target.parameters())
    trained = [*method.online.parameters(), *method.predictor.parameters()]
    assert all(p.grad is not None for p in trained)
    assert method.target[0][2].num_batches_tracked == 2  # in train mode, both views
    kept = copy.deepcopy(dict(method.target.named_buffers()))
    method.after_step(0.5)
    torch.testing.assert_close(dict(method.target.named_buffers()), kept, rtol=0, atol=0)


def test_the_targets_momentum_follows_the_cosine(encoder, views):
    method = byol.BYOL(encoder, views[1], **SMALL, momentum=0.996)
    before = method.target[0].linear.weight.clone()
    method.encoder.linear.weight.data.add_(1.0)
    method.after_step(0.5)
    m = teachers.cosine_between(0.996, 1.0, 0.5)
    assert m == pytest.approx(0.998)
    expected = m * before + (1 - m) * (before + 1.0)
    torch.testing.assert_close(method.target[0].linear.weight.data, expected)


def test_heads_are_the_official_ones(encoder, views):
    method = byol.BYOL(encoder, views[1], **SMALL)
    for head, sizes in (
        (method.online[1], [(12, 6), (5, 12)]),
        (method.predictor, [(9, 5), (5, 9)]),
    ):
        kinds = [type(part).__name__ for part in head]
        assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
        assert [tuple(part.weight.shape) for part in (head[0], head[3])] == sizes
        assert head[0].bias is not None
        assert head[3].bias is None
