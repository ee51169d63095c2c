"""Optimizers of the recipes, their parameter groups, and clipping.

An optimizer is a function `(named, scale, *, lr, ...)`: the trainable parameters with their names,
and the factor that turns `lr` of the recipe into that of the whole batch. Its groups carry
`lr_scale` and `decay_scale`, the factors of the scheduled rates.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import ExtraError
from ..lookup import Entry, call, choose

Named = Sequence[tuple[str, nn.Parameter]]
Groups = list[dict[str, Any]]


def build(entry: Entry, method: nn.Module, *, scale: float) -> torch.optim.Optimizer:
    """Build the optimizer of a recipe over the trainable parameters of `method`.

    `scale` is global_batch * accumulate / lr_batch (the linear rule, Goyal et al. 2017).

    Raises:
        RecipeError: unknown optimizer or setting.
        ExtraError: the optimizer's package is not installed.
    """
    known = {"sgd": sgd, "adamw": adamw, "lars": lars}
    named = [(name, p) for name, p in method.named_parameters() if p.requires_grad]
    optimizer: torch.optim.Optimizer = call(choose(entry, known, "optimizer"), entry, named, scale)
    return optimizer


def sgd(
    named: Named,
    scale: float,
    *,
    lr: float,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 1e-4,
    decay: Literal["weights", "all"] = "weights",
) -> torch.optim.Optimizer:
    """SGD with momentum; `decay: all` also decays biases and norms, as MoCo and SimSiam do."""
    groups = [group(named)] if decay == "all" else split(named)
    return torch.optim.SGD(
        groups, lr=lr * scale, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
    )


def adamw(
    named: Named,
    scale: float,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.05,
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019)."""
    return torch.optim.AdamW(
        split(named), lr=lr * scale, betas=betas, eps=eps, weight_decay=weight_decay
    )


def lars(
    named: Named,
    scale: float,
    *,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 1e-6,
    trust_coefficient: float = 0.001,
    bias_lr: float | None = None,
) -> torch.optim.Optimizer:
    """LARS (You et al. 2017) of timm; 1-D parameters get neither weight decay nor adaptation.

    `bias_lr` is the learning rate of those parameters where it is its own (Barlow Twins).

    Raises:
        ExtraError: timm is not installed.
    """
    try:
        from timm.optim import Lars
    except ImportError as error:
        raise ExtraError("lars: timm is not installed; pip install 'sslpipe[train]'") from error
    # timm's trust ratio is that of LARC, c |w| / (|g| + d |w|) with decay d; the official SSL
    # codes take c |w| / |g + d w|. At d = 1e-6 the two agree to about one part in a million.
    # always_adapt: timm stops adapting a group whose weight decay happens to be 0.
    groups = [
        g | {"always_adapt": g["decay_scale"] > 0} for g in split(named, (bias_lr or lr) / lr)
    ]
    optimizer: torch.optim.Optimizer = Lars(
        groups,
        lr=lr * scale,
        momentum=momentum,
        weight_decay=weight_decay,
        trust_coeff=trust_coefficient,
    )
    return optimizer


def split(named: Named, exempt_lr_scale: float = 1.0) -> Groups:
    """Groups of decayed weights and of exempt biases, norms and scalars; empty ones are left out.

    Exempt is what is at most 1-D or called `bias`, so DINO's pos_embed and cls_token are decayed.
    """
    weights = [(name, p) for name, p in named if not is_exempt(name, p)]
    exempt = [(name, p) for name, p in named if is_exempt(name, p)]
    groups = [
        group(weights),
        group(exempt, lr_scale=exempt_lr_scale, decay_scale=0.0) | {"weight_decay": 0.0},
    ]
    return [g for g in groups if g["params"]]


def is_exempt(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter gets no weight decay."""
    return parameter.ndim <= 1 or name.endswith("bias")


def group(named: Named, *, lr_scale: float = 1.0, decay_scale: float = 1.0) -> dict[str, Any]:
    """One parameter group."""
    parameters = [p for _, p in named]
    return {"params": parameters, "lr_scale": lr_scale, "decay_scale": decay_scale}


def set_rates(optimizer: torch.optim.Optimizer, *, lr: float, weight_decay: float) -> None:
    """Write the rates of a step into the groups, times their scales."""
    for g in optimizer.param_groups:
        g["lr"] = lr * g.get("lr_scale", 1.0)
        g["weight_decay"] = weight_decay * g.get("decay_scale", 1.0)


def clip_per_parameter(parameters: Sequence[nn.Parameter], norm: float) -> None:
    """Scale each gradient to a norm of at most `norm`: `clip_gradients` of DINO's utils.py."""
    gradients: list[Tensor] = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return
    # foreach and clamp instead of DINO's `if`: no synchronisation, a few kernels in all
    norms_G = torch.stack(list(torch._foreach_norm(gradients)))
    factors_G = (norm / (norms_G + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(gradients, list(factors_G.unbind()))
