"""Optimizers of the recipes, and their parameter groups.

An optimizer is a function `(method, scale, *, lr, ...)`: a module, of which it trains what takes
gradients, and the factor that turns `lr` of the recipe into that of the whole batch. Its groups
carry `lr_scale` and `decay_scale`, the factors of the scheduled rates, and `fixed_lr` where the
learning rate stays at its peak.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import nn

from ..encoders.blocks import blocks_of
from ..encoders.libraries import layers_of, library
from ..methods import Method
from ..recipe.names import Entry, call, choose

Named = Sequence[tuple[str, nn.Parameter]]
Groups = list[dict[str, Any]]
Decay = Literal["weights", "all"]
Rates = Mapping[str, Any]  # what a group carries beside its parameters
FIXED_LR: Rates = MappingProxyType({"fixed_lr": True})
EXEMPT: Rates = MappingProxyType({"decay_scale": 0.0, "weight_decay": 0.0})


def build_optimizer(entry: Entry, method: nn.Module, *, scale: float) -> torch.optim.Optimizer:
    """Build the optimizer of a recipe over the trainable parameters of `method`.

    `scale` turns its lr into that of the whole batch. Of a Method, `fixed_lr_parameters()` keep the
    peak learning rate and `undecayed_parameters()` are not decayed; any other module has neither.

    Raises:
        RecipeError: unknown optimizer or setting.
        ExtraError: the optimizer's package is not installed.
    """
    known = {make.__name__: make for make in (sgd, adamw, adafactor, lamb, lars, muon)}
    optimizer: torch.optim.Optimizer = call(choose(entry, known, "optimizer"), entry, method, scale)
    if isinstance(method, Method):
        set_apart(optimizer, method.fixed_lr_parameters(), FIXED_LR)
        set_apart(optimizer, method.undecayed_parameters(), EXEMPT)
    return optimizer


def set_apart(
    optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], rates: Rates
) -> None:
    """Move parameters with rates of their own into groups of their own."""
    ids = {id(p) for p in parameters}
    for g in list(optimizer.param_groups):
        apart = [p for p in g["params"] if id(p) in ids]
        if apart:
            g["params"] = [p for p in g["params"] if id(p) not in ids]
            optimizer.add_param_group({**g, **rates, "params": apart})


def sgd(
    method: nn.Module,
    scale: float,
    *,
    lr: float,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 1e-4,
    decay: Decay = "weights",
) -> torch.optim.Optimizer:
    """Make SGD with momentum; `decay: all` also decays biases and norms (MoCo, SimSiam)."""
    return torch.optim.SGD(
        split(trained(method), decay),
        lr=lr * scale,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
    )


def adamw(
    method: nn.Module,
    scale: float,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.05,
    layer_decay: float = 1.0,
    patch_embed_lr: float = 1.0,
    decay: Decay = "weights",
) -> torch.optim.Optimizer:
    """Make AdamW (Loshchilov and Hutter 2019); `decay: all` also decays biases and norms (MoCo v3).

    A layer of a timm encoder has `layer_decay` times the rate of the layer above it, and the patch
    embedding `patch_embed_lr` times its layer's (DINOv2, ssl_meta_arch.py: .9 and .2).

    Raises:
        ValueError: layer_decay without a layered encoder, or factors out of (0, 1].
    """
    if not (0 < layer_decay <= 1 and 0 < patch_embed_lr <= 1):
        raise ValueError(
            f"layer_decay = {layer_decay}, patch_embed_lr = {patch_embed_lr}; set both in (0, 1]"
        )
    scales = layer_scales(method, layer_decay, patch_embed_lr)
    layers = defaultdict(list)
    for name, p in trained(method):
        layers[scales.get(name, 1.0)].append((name, p))
    groups = [g for factor, named in layers.items() for g in split(named, decay, factor, factor)]
    return torch.optim.AdamW(groups, lr=lr * scale, betas=betas, eps=eps, weight_decay=weight_decay)


def adafactor(
    method: nn.Module,
    scale: float,
    *,
    lr: float,
    weight_decay: float = 0.0,
    decay: Decay = "weights",
) -> torch.optim.Optimizer:
    """Make torch's Adafactor (Shazeer and Stern 2018), which T5 was trained by.

    A step is min(lr, 1 / root of its number) of a parameter's own root mean square: with lr .01 and
    a rate that stays, T5's 1 / sqrt(max(step, 10,000)). Second moments decay by 1 - step^-.8 and
    are at least 1e-30, as T5's; updates are clipped at a root mean square of 1.
    """
    # torch squares its first eps. Its own, 1.2e-7, also bounds the mean of squared gradients, which
    # those of large models are below
    return torch.optim.Adafactor(
        split(trained(method), decay), lr=lr * scale, eps=(1e-15, 1e-3), weight_decay=weight_decay
    )


def lamb(
    method: nn.Module,
    scale: float,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.01,
    decay: Decay = "weights",
) -> torch.optim.Optimizer:
    """Make timm's LAMB (You et al. 2020, arXiv:1904.00962) as ALBERT's lamb_optimizer.py has it.

    No bias correction; biases and norms get neither weight decay nor adaptation. `decay: all`
    decays and adapts them too. Clipping is the trainer's.

    Raises:
        ExtraError: timm is not installed.
    """
    optimizer: torch.optim.Optimizer = library("timm.optim").Lamb(
        split(trained(method), decay),
        lr=lr * scale,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        bias_correction=False,
        max_grad_norm=None,
    )
    return optimizer


def lars(
    method: nn.Module,
    scale: float,
    *,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 1e-6,
    trust_coefficient: float = 0.001,
    bias_lr: float | None = None,
    decay: Decay = "weights",
) -> torch.optim.Optimizer:
    """Make timm's LARS (You et al. 2017); 1-D parameters get neither weight decay nor adaptation.

    `bias_lr` is the learning rate of those parameters where it is its own (Barlow Twins).
    `decay: all` decays and adapts them too: with it this is apex's LARC(clip=False) of SwAV.

    Raises:
        ExtraError: timm is not installed.
        ValueError: bias_lr with `decay: all`.
    """
    if decay == "all" and bias_lr is not None:
        raise ValueError("bias_lr needs decay: weights, which sets biases apart; remove one")
    groups = split(trained(method), decay, 1.0, (bias_lr or lr) / lr)
    # timm's trust ratio is that of LARC, c |w| / (|g| + d |w|) with decay d; the official SSL
    # codes take c |w| / |g + d w|. At d = 1e-6 the two agree to about one part in a million.
    # always_adapt: timm stops adapting a group whose weight decay happens to be 0.
    optimizer: torch.optim.Optimizer = library("timm.optim").Lars(
        [g | {"always_adapt": g["decay_scale"] > 0} for g in groups],
        lr=lr * scale,
        momentum=momentum,
        weight_decay=weight_decay,
        trust_coeff=trust_coefficient,
    )
    return optimizer


def muon(
    method: nn.Module,
    scale: float,
    *,
    lr: float,
    momentum: float = 0.95,
    betas: tuple[float, float] = (0.9, 0.95),
    weight_decay: float = 0.1,
    decay: Decay = "weights",
) -> torch.optim.Optimizer:
    """Make timm's Muon (Jordan et al. 2024) for the matrices of blocks, AdamW for all else.

    Blocks are those of encoders/blocks.py: embeddings and output layers are AdamW's. The step of an
    m x n matrix is its Nesterov momentum, made about orthogonal by five Newton-Schulz iterations in
    bfloat16, times 0.2 root(max(m, n)): as large as AdamW's, whose lr and weight decay it takes
    (Liu et al. 2025, arXiv:2502.16982, eq. 4). Queries, keys and values in one matrix are taken as
    one; so are the planes of a convolution.

    Raises:
        ExtraError: timm is not installed.
    """
    inner = {id(p) for block in blocks_of(method) for p in block.parameters() if p.ndim > 1}
    matrices = [(name, p) for name, p in trained(method) if id(p) in inner]
    others = [(name, p) for name, p in trained(method) if id(p) not in inner]
    groups = [g | {"use_muon": True, "nesterov": True} for g in split(matrices, decay)]
    groups += [g | {"use_muon": False} for g in split(others, decay)]
    optimizer: torch.optim.Optimizer = library("timm.optim").Muon(
        groups,
        lr=lr * scale,
        betas=betas,
        momentum=momentum,
        weight_decay=weight_decay,
        ns_coefficients="original",  # Jordan's for all five; timm's default are others'
    )
    return optimizer


def trained(method: nn.Module) -> Named:
    """List the parameters that take gradients, with their names."""
    return [(name, p) for name, p in method.named_parameters() if p.requires_grad]


def layer_scales(method: nn.Module, layer_decay: float, patch_embed_lr: float) -> dict[str, float]:
    """Map names of parameters of timm models within `method` to factors of their rates.

    Parameters that are not named have the factor 1.

    Raises:
        ValueError: there is no such model to decay.
    """
    if layer_decay == patch_embed_lr == 1:
        return {}
    scales = {}
    for prefix, layers in layers_of(method):
        # heads stand above the last block; timm counts the final norm to that block, where
        # the official codes have it above too
        top = max(layers.values()) + 1
        for name, layer in layers.items():
            first = patch_embed_lr if name.startswith("patch_embed.") else 1.0
            scales[f"{prefix}.{name}"] = first * layer_decay ** (top - layer)
    if not scales:
        raise ValueError("layer_decay and patch_embed_lr need an encoder of timm; leave them out")
    return scales


def split(
    named: Named, decay: Decay, lr_scale: float = 1.0, exempt_lr_scale: float = 1.0
) -> Groups:
    """Split weights, which decay, from biases, norms and scalars, which do not; no group is empty.

    Exempt is what is at most 1-D or called `bias`, so DINO's pos_embed and cls_token are decayed;
    with `decay: all` nothing is.
    """
    if decay == "all":
        return [group(named, lr_scale=lr_scale)] if named else []
    weights = [(name, p) for name, p in named if not is_exempt(name, p)]
    exempt = [(name, p) for name, p in named if is_exempt(name, p)]
    groups = [
        group(weights, lr_scale=lr_scale),
        {**group(exempt, lr_scale=exempt_lr_scale), **EXEMPT},
    ]
    return [g for g in groups if g["params"]]


def is_exempt(name: str, parameter: nn.Parameter) -> bool:
    """Tell whether a parameter gets no weight decay."""
    return parameter.ndim <= 1 or name.endswith("bias")


def group(named: Named, *, lr_scale: float = 1.0, decay_scale: float = 1.0) -> dict[str, Any]:
    """Make a parameter group for an optimizer, with its scales of the rates."""
    parameters = [p for _, p in named]
    return {"params": parameters, "lr_scale": lr_scale, "decay_scale": decay_scale}


def set_rates(optimizer: torch.optim.Optimizer, *, lr: float, weight_decay: float) -> None:
    """Write the rates of a step into the groups, times their scales."""
    peak = optimizer.defaults["lr"]
    for g in optimizer.param_groups:
        g["lr"] = (peak if g.get("fixed_lr") else lr) * g.get("lr_scale", 1.0)
        g["weight_decay"] = weight_decay * g.get("decay_scale", 1.0)
