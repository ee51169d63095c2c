import copy
import math

import pytest
import torch

from sslpipe.methods import simsiam
from sslpipe.recipe.names import Entry
from sslpipe.train import optimizers

SMALL = {"projector": (12, 12, 5), "predictor_hidden": 3}


@pytest.fixture
def views(make_batch, rand):
    return make_batch({"global": rand(2, 8, 3, 8, 8).float()})


def test_loss_is_equation_1(rand):
    p, z = rand(5, 4), rand(5, 4)
    rows = zip(p.tolist(), z.tolist(), strict=True)
    slow = sum(
        -sum(a * b for a, b in zip(x, y, strict=True)) / math.hypot(*x) / math.hypot(*y)
        for x, y in rows
    )
    assert simsiam.negative_cosine(p, z).item() == pytest.approx(slow / 5, abs=1e-9)
    torch.testing.assert_close(
        simsiam.negative_cosine(p * 5.0, z * 0.1), simsiam.negative_cosine(p, z)
    )
    assert simsiam.negative_cosine(p, p).item() == pytest.approx(-1)


def test_the_target_side_takes_no_gradient(rand):
    p, z = rand(5, 4).requires_grad_(), rand(5, 4).requires_grad_()
    simsiam.negative_cosine(p, z).backward()
    assert z.grad is None
    assert p.grad.abs().sum() > 0


def test_method_is_the_symmetric_loss_of_equation_2(encoder, views):
    batch, spec = views
    method = simsiam.SimSiam(encoder, spec, **SMALL)
    reference = copy.deepcopy(method)
    z1, z2 = (reference.projector(reference.encoder(x)) for x in batch.views["global"])
    p1, p2 = reference.predictor(z1), reference.predictor(z2)
    expected = (
        simsiam.negative_cosine(p1, z2.detach()) + simsiam.negative_cosine(p2, z1.detach())
    ) / 2
    output = method(batch)
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    expected.backward()
    torch.testing.assert_close(encoder.linear.weight.grad, reference.encoder.linear.weight.grad)
    assert encoder.calls == [(8, 3, 8, 8)] * 2


def test_heads_are_the_official_ones(encoder, views):
    method = simsiam.SimSiam(encoder, views[1], **SMALL)
    block = ["Linear", "BatchNorm1d", "ReLU"]
    kinds = [type(part).__name__ for part in method.projector]
    assert kinds == [*block, *block, "Linear", "BatchNorm1d"]
    assert not method.projector[-1].affine
    assert all(part.bias is None for part in (method.projector[i] for i in (0, 3, 6)))
    assert [type(part).__name__ for part in method.predictor] == [*block, "Linear"]
    assert method.predictor[0].bias is None
    assert method.predictor[3].bias is not None
    assert (method.predictor[0].out_features, method.predictor[3].out_features) == (3, 5)


def test_the_predictors_learning_rate_stays(encoder, views):
    method = simsiam.SimSiam(encoder, views[1], **SMALL)
    optimizer = optimizers.build_optimizer(
        Entry("sgd", {"lr": 0.5, "decay": "all"}), method, scale=1.0
    )
    optimizers.set_rates(optimizer, lr=0.1, weight_decay=1e-4)
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    fixed = {id(p) for p in method.predictor.parameters()}
    assert {rate for key, rate in rates.items() if key in fixed} == {0.5}
    assert {rate for key, rate in rates.items() if key not in fixed} == {0.1}


def test_participation_ratio_counts_directions():
    line_BD = torch.linspace(-1, 1, 9)[:, None] * torch.tensor([1.0, -2.0, 0.5]) + 7
    assert simsiam.participation_ratio(line_BD).item() == pytest.approx(1)
    even_BD = torch.cat([torch.eye(4), -torch.eye(4)]) + 7
    assert simsiam.participation_ratio(even_BD).item() == pytest.approx(4)
    assert simsiam.participation_ratio(torch.ones(5, 3)).item() == 0
