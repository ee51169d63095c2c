import pytest
import torch
from torch import nn

from sslpipe.errors import RecipeError
from sslpipe.lookup import Entry
from sslpipe.train.optimizers import build, clip_per_parameter, set_rates


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)
        self.pos_embed = nn.Parameter(torch.ones(1, 4, 3))
        self.table_bias = nn.Parameter(torch.ones(2, 2))
        self.scale = nn.Parameter(torch.ones(()))
        self.teacher = nn.Linear(3, 2).requires_grad_(False)


def names(net, group):
    known = {id(p): name for name, p in net.named_parameters()}
    return {known[id(p)] for p in group["params"]}


WEIGHTS = {"linear.weight", "pos_embed"}
EXEMPT = {"linear.bias", "norm.weight", "norm.bias", "table_bias", "scale"}


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_groups_and_linear_scaling(name):
    net = Net()
    optimizer = build(Entry(name, {"lr": 0.1, "weight_decay": 0.5}), net, scale=4.0)
    weights, exempt = optimizer.param_groups
    assert names(net, weights) == WEIGHTS
    assert names(net, exempt) == EXEMPT
    assert (weights["lr"], weights["weight_decay"]) == (0.4, 0.5)
    assert (exempt["lr"], exempt["weight_decay"]) == (0.4, 0.0)
    set_rates(optimizer, lr=0.3, weight_decay=0.2)
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(0.3, 0.2), (0.3, 0)]


def test_sgd_can_decay_everything():
    net = Net()
    (group,) = build(Entry("sgd", {"lr": 1, "decay": "all"}), net, scale=1.0).param_groups
    assert names(net, group) == WEIGHTS | EXEMPT


def test_numbers_that_yaml_reads_as_strings_are_bound():
    optimizer = build(Entry("adamw", {"lr": "5e-4", "betas": [0.9, 0.95]}), Net(), scale=2.0)
    assert optimizer.param_groups[0]["lr"] == 1e-3
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.95)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (Entry("adam", {"lr": 1}, "r.yaml:7"), "r.yaml:7: unknown optimizer 'adam'; did you mean"),
        (Entry("sgd", {}, "r.yaml:7"), "r.yaml:7: sgd needs the setting 'lr'"),
        (Entry("sgd", {"lr": 1, "mometum": 0}), "did you mean 'momentum'"),
        (Entry("sgd", {"lr": -1}, "r.yaml:7"), "r.yaml:7: sgd: Invalid learning rate"),
    ],
)
def test_bad_entries(entry, message):
    with pytest.raises(RecipeError, match=message):
        build(entry, Net(), scale=1.0)


def lars_by_hand(w, grads, *, lr, momentum, decay, trust, adapt):
    """LARS as Barlow Twins, MoCo v3 and BYOL write it, for one tensor."""
    mu = torch.zeros_like(w)
    for g in grads:
        d = g
        if adapt:
            d = g + decay * w
            if w.norm() > 0 and d.norm() > 0:
                d = d * trust * w.norm() / d.norm()
        mu = momentum * mu + d
        w = w - lr * mu
    return w


@pytest.mark.parametrize("decay", [0.0, 1e-6])
def test_lars_is_that_of_the_official_codes(decay):
    torch.manual_seed(0)
    net = nn.Linear(5, 3).double()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    grads = {name: torch.randn(4, *p.shape).double() for name, p in before.items()}
    entry = Entry("lars", {"lr": 2.0, "weight_decay": decay, "bias_lr": 0.5})
    optimizer = build(entry, net, scale=0.5)
    set_rates(optimizer, lr=1.0, weight_decay=decay)
    for step in range(4):
        for name, p in net.named_parameters():
            p.grad = grads[name][step]
        optimizer.step()
    settings = {"momentum": 0.9, "decay": decay, "trust": 0.001}
    weight = lars_by_hand(before["weight"], grads["weight"], lr=1.0, adapt=True, **settings)
    bias = lars_by_hand(before["bias"], grads["bias"], lr=0.25, adapt=False, **settings)
    torch.testing.assert_close(net.weight.detach(), weight, rtol=1e-7, atol=0)
    torch.testing.assert_close(net.bias.detach(), bias, rtol=1e-12, atol=0)


def test_clip_per_parameter_is_dinos():
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.zeros(n, 3)) for n in (2, 50, 4)]
    parameters.append(nn.Parameter(torch.zeros(3)))  # without a gradient
    gradients = [torch.randn(2, 3) * 0.1, torch.randn(50, 3), torch.zeros(4, 3)]
    for p, g in zip(parameters, gradients, strict=False):
        p.grad = g.clone()
    clip_per_parameter(parameters, 3.0)
    for p, g in zip(parameters, gradients, strict=False):
        factor = 3.0 / (g.norm() + 1e-6)
        torch.testing.assert_close(p.grad, g * factor if factor < 1 else g)
    assert parameters[1].grad.norm() == pytest.approx(3.0, rel=1e-5)
    assert parameters[3].grad is None
