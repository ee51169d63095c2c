import copy

import pytest
import torch
from torch import nn

from sslpipe.encoders import build_encoder
from sslpipe.errors import RecipeError
from sslpipe.methods import Method
from sslpipe.recipe.names import Entry
from sslpipe.train.clipping import clip_per_parameter
from sslpipe.train.optimizers import build_optimizer, set_rates
from tests.view_specs import square


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


@pytest.mark.parametrize("name", ["sgd", "adamw", "adafactor", "lamb", "lars", "muon"])
def test_groups_and_linear_scaling(name):
    net = Net()
    optimizer = build_optimizer(Entry(name, {"lr": 0.1, "weight_decay": 0.5}), net, scale=4.0)
    weights, exempt = optimizer.param_groups
    assert names(net, weights) == WEIGHTS
    assert names(net, exempt) == EXEMPT
    assert (weights["lr"], weights["weight_decay"]) == (0.4, 0.5)
    assert (exempt["lr"], exempt["weight_decay"]) == (0.4, 0.0)
    set_rates(optimizer, lr=0.3, weight_decay=0.2)
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(0.3, 0.2), (0.3, 0)]


@pytest.mark.parametrize("name", ["sgd", "adamw", "adafactor", "lamb", "lars", "muon"])
def test_everything_can_be_decayed(name):
    net = Net()
    entry = Entry(name, {"lr": 1, "decay": "all", "weight_decay": 0.1})
    (group,) = build_optimizer(entry, net, scale=1.0).param_groups
    assert names(net, group) == WEIGHTS | EXEMPT
    assert group["weight_decay"] > 0


def test_numbers_that_yaml_reads_as_strings_are_bound():
    optimizer = build_optimizer(
        Entry("adamw", {"lr": "5e-4", "betas": [0.9, 0.95]}), Net(), scale=2.0
    )
    assert optimizer.param_groups[0]["lr"] == 1e-3
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.95)


def test_lamb_is_that_of_albert():
    """lamb_optimizer.py: no bias correction; biases are neither decayed nor adapted."""
    torch.manual_seed(0)
    net = nn.Linear(4, 3)
    entry = Entry("lamb", {"lr": 0.2, "weight_decay": 0.1})
    optimizer = build_optimizer(entry, net, scale=0.5)
    state = {
        name: (p.detach().clone(), 0 * p.detach(), 0 * p.detach())
        for name, p in net.named_parameters()
    }
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        for name, p in net.named_parameters():
            p.grad = torch.randn(p.shape, generator=generator)
            w, m, v = state[name]
            m, v = 0.9 * m + 0.1 * p.grad, 0.999 * v + 0.001 * p.grad**2
            update = m / (v.sqrt() + 1e-6)
            ratio = 1.0
            if name == "weight":
                update = update + 0.1 * w
                ratio = w.norm() / update.norm()
            state[name] = w - 0.1 * ratio * update, m, v
        optimizer.step()
    for name, p in net.named_parameters():
        torch.testing.assert_close(p.detach(), state[name][0])


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.narrow, self.wide = nn.Linear(8, 4), nn.Linear(4, 8, bias=False)


class Stacked(nn.Module):
    def __init__(self):
        super().__init__()
        self.word = nn.Embedding(6, 8)
        self.h = nn.ModuleList(Block() for _ in range(2))
        self.output = nn.Linear(8, 6)


def slow_muon(weight, momentum, gradient):
    """Jordan et al. 2024 with the factor of arXiv:2502.16982, eq. 4; a rate of 0.1, a decay of 1.

    The odd polynomial of five iterations is applied to the singular values themselves.
    """
    momentum = 0.95 * momentum + 0.05 * gradient
    update = 0.95 * momentum + 0.05 * gradient
    left, values, right = torch.linalg.svd(update, full_matrices=False)
    values = values / values.norm()
    for _ in range(5):
        values = 3.4445 * values - 4.775 * values**3 + 2.0315 * values**5
    step = 0.2 * max(weight.shape) ** 0.5 * left @ values.diag() @ right
    return weight - 0.1 * weight - 0.1 * step, momentum


def test_muon_makes_steps_of_matrices_in_blocks_orthogonal_and_leaves_others_to_adamw():
    torch.manual_seed(0)
    net = Stacked()
    twin = copy.deepcopy(net)
    settings = {"lr": 0.1, "weight_decay": 1.0}
    muon = build_optimizer(Entry("muon", settings), net, scale=1.0)
    adamw = build_optimizer(Entry("adamw", settings | {"betas": [0.9, 0.95]}), twin, scale=1.0)
    matrices = [n for n, p in net.named_parameters() if n.startswith("h.") and p.ndim == 2]
    assert len(matrices) == 4
    moved = {n: (p.detach().clone(), 0 * p.detach()) for n, p in net.named_parameters()}
    for _ in range(3):
        for (name, p), other in zip(net.named_parameters(), twin.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            other.grad = p.grad.clone()
            moved[name] = slow_muon(*moved[name], p.grad) if name in matrices else (other, p)
        muon.step()
        adamw.step()
    for name, p in net.named_parameters():
        near = {"rtol": 0, "atol": 2e-3} if name in matrices else {"rtol": 1e-5, "atol": 1e-7}
        torch.testing.assert_close(p.detach(), moved[name][0].detach(), **near)  # bf16: 2e-3


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
        build_optimizer(entry, Net(), scale=1.0)


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
    optimizer = build_optimizer(entry, net, scale=0.5)
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


@pytest.mark.parametrize("decay", [0.0, 1e-2])
def test_lars_that_decays_all_is_larc_of_swav(decay):
    """NVIDIA apex, LARC(clip=False): the trust ratio has the decay in its denominator."""
    torch.manual_seed(0)
    net = nn.Linear(5, 3).double()
    weights = [p.detach().clone() for p in net.parameters()]
    buffers = [torch.zeros_like(w) for w in weights]
    entry = Entry("lars", {"lr": 2.0, "weight_decay": decay, "decay": "all"})
    optimizer = build_optimizer(entry, net, scale=1.0)
    set_rates(optimizer, lr=2.0, weight_decay=decay)
    for _ in range(3):
        for p, w, mu in zip(net.parameters(), weights, buffers, strict=True):
            p.grad = torch.randn_like(p)
            ratio = 0.001 * w.norm() / (p.grad.norm() + decay * w.norm() + 1e-8)
            mu.mul_(0.9).add_((p.grad + decay * w) * ratio)
            w.sub_(2.0 * mu)
        optimizer.step()
    for p, w in zip(net.parameters(), weights, strict=True):
        torch.testing.assert_close(p.detach(), w, rtol=1e-9, atol=0)


class Fixed(Net, Method):
    def forward(self, batch):
        raise NotImplementedError

    def fixed_lr_parameters(self):
        yield from self.linear.parameters()


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb", "lars", "muon"])
def test_fixed_parameters_keep_the_peak_and_are_in_one_group_only(name):
    net = Fixed()
    optimizer = build_optimizer(Entry(name, {"lr": 0.1, "weight_decay": 0.5}), net, scale=4.0)
    set_rates(optimizer, lr=0.003, weight_decay=0.2)
    trained = [n for n, p in net.named_parameters() if p.requires_grad]
    held = [n for g in optimizer.param_groups for n in names(net, g)]
    assert sorted(held) == sorted(trained)
    for g in optimizer.param_groups:
        for held in names(net, g):
            assert g["lr"] == (0.4 if held.startswith("linear") else 0.003)
            assert g["weight_decay"] == (0.2 if held in WEIGHTS else 0.0)


class Undecayed(Fixed):
    def undecayed_parameters(self):
        yield self.pos_embed
        yield self.linear.weight


@pytest.mark.parametrize("decay", ["weights", "all"])
def test_undecayed_parameters_follow_the_rate_and_are_in_one_group_only(decay):
    net = Undecayed()
    entry = Entry("adamw", {"lr": 0.1, "weight_decay": 0.5, "decay": decay})
    optimizer = build_optimizer(entry, net, scale=1.0)
    set_rates(optimizer, lr=0.003, weight_decay=0.2)
    held = [n for g in optimizer.param_groups for n in names(net, g)]
    assert sorted(held) == sorted(n for n, p in net.named_parameters() if p.requires_grad)
    decayed = [n for g in optimizer.param_groups if g["weight_decay"] for n in names(net, g)]
    assert set(decayed) == (EXEMPT if decay == "all" else set())
    for g in optimizer.param_groups:
        for name in names(net, g):
            assert g["lr"] == (0.1 if name.startswith("linear") else 0.003)


class Layered(nn.Module):
    """A student's encoder of two blocks, a decoder whose blocks look alike, a frozen teacher."""

    def __init__(self):
        super().__init__()
        settings = {"embed_dim": 8, "depth": 2, "num_heads": 2, "patch_size": 4}
        self.encoder = build_encoder(Entry("vit_tiny", settings), square(8))
        self.decoder = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(8, 8)])})
        self.teacher = build_encoder(Entry("vit_tiny", settings), square(8))
        self.teacher.requires_grad_(False)


def test_layer_decay_is_that_of_dinov2_and_of_mae_s_fine_tuning():
    net = Layered()
    entry = Entry("adamw", {"lr": 1.0, "layer_decay": 0.5, "patch_embed_lr": 0.2})
    optimizer = build_optimizer(entry, net, scale=1.0)
    set_rates(optimizer, lr=0.1, weight_decay=0.04)
    rates = {name: g["lr"] for g in optimizer.param_groups for name in names(net, g)}
    decays = {name: g["weight_decay"] for g in optimizer.param_groups for name in names(net, g)}
    assert sorted(rates) == sorted(n for n, p in net.named_parameters() if p.requires_grad)
    model = "encoder.model."
    assert rates["decoder.blocks.0.weight"] == pytest.approx(0.1)
    assert rates[model + "blocks.1.attn.qkv.weight"] == pytest.approx(0.05)
    assert rates[model + "blocks.0.norm1.bias"] == pytest.approx(0.025)
    assert rates[model + "pos_embed"] == pytest.approx(0.0125)
    assert rates[model + "patch_embed.proj.weight"] == pytest.approx(0.0025)
    assert decays[model + "patch_embed.proj.weight"] == decays[model + "pos_embed"] == 0.04
    assert decays[model + "patch_embed.proj.bias"] == decays[model + "blocks.0.norm1.weight"] == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer_decay": 0.9}, "need an encoder of timm; leave them out"),
        ({"layer_decay": 1.5}, r"layer_decay = 1\.5, .*; set both in"),
    ],
)
def test_layer_decay_that_cannot_be(settings, message):
    with pytest.raises(RecipeError, match=message):
        build_optimizer(Entry("adamw", {"lr": 1.0, **settings}), Net(), scale=1.0)


def test_larc_has_no_rate_of_its_own_for_biases():
    with pytest.raises(RecipeError, match="bias_lr needs decay: weights"):
        build_optimizer(
            Entry("lars", {"lr": 1.0, "bias_lr": 0.1, "decay": "all"}), Net(), scale=1.0
        )


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


def slow_adafactor(weight, moments, gradient, step):
    """Algorithm 4 of arXiv:1804.04235 for a matrix, as T5 sets it: relative steps, no momentum."""
    beta = 1 - step**-0.8
    rows, columns = moments
    rows = [
        beta * r + (1 - beta) * (g**2).mean().item() for r, g in zip(rows, gradient, strict=True)
    ]
    columns = [
        beta * c + (1 - beta) * (g**2).mean().item()
        for c, g in zip(columns, gradient.T, strict=True)
    ]
    mean = sum(rows) / len(rows)
    root = torch.tensor([[max(r * c / mean, 1e-30) ** 0.5 for c in columns] for r in rows])
    update = gradient / root.to(gradient.dtype)
    update = update / max(1.0, update.square().mean().sqrt().item())
    rate = max(step, 10_000) ** -0.5
    return weight - max(1e-3, weight.square().mean().sqrt().item()) * rate * update, (rows, columns)


@pytest.mark.parametrize("size", [1.0, 1e-6])  # of gradients: large models' are small
def test_adafactor_is_that_of_t5(size):
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(5, 3, bias=False, dtype=torch.float64)
    optimizer = build_optimizer(Entry("adafactor", {"lr": 0.01}), layer, scale=1.0)
    expected, moments = layer.weight.detach().clone(), ([0.0] * 3, [0.0] * 5)
    for step in range(1, 6):
        gradient = size * torch.randn(3, 5, generator=generator, dtype=torch.float64)
        gradient[1] = 0  # a word that does not come
        expected, moments = slow_adafactor(expected, moments, gradient, step)
        layer.weight.grad = gradient
        optimizer.step()
        torch.testing.assert_close(layer.weight.detach(), expected, rtol=1e-6, atol=1e-9)
