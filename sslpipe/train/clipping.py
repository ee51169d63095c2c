"""Clipping of gradients: which are clipped together, and DINO's, of each parameter for itself."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import RecipeError
from ..methods import Method
from ..recipe.schema import TrainSection
from .optimizers import trained


def parameters_to_clip(
    clip: Literal["global", "per_module", "per_parameter"], method: Method, where: str
) -> list[list[nn.Parameter]]:
    """List the parameters whose gradients are clipped together: all, or those of each module.

    Raises:
        RecipeError: the method does not say which modules.
    """
    if clip != "per_module":
        return [[p for _, p in trained(method)]]
    modules = [[p for p in module if p.requires_grad] for module in method.clipped_together()]
    if not modules:
        raise RecipeError(
            f"{where}: train.clip = 'per_module' needs a method with clipped_together(), such as "
            f"dinov2; {type(method).__name__} has none. Set global or per_parameter"
        )
    return modules


def clip(
    together: Sequence[list[nn.Parameter]],
    settings: TrainSection,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> None:
    """Limit the gradients as the recipe says; `together`: see `parameters_to_clip`."""
    if settings.clip_norm is None:
        return
    scaler.unscale_(optimizer)
    clip_gradients = (
        clip_per_parameter if settings.clip == "per_parameter" else nn.utils.clip_grad_norm_
    )
    for parameters in together:
        clip_gradients(parameters, settings.clip_norm)


def clip_per_parameter(parameters: Sequence[nn.Parameter], norm: float) -> None:
    """Scale each gradient to a norm of at most `norm`: `clip_gradients` of DINO's utils.py."""
    gradients: list[Tensor] = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return
    # foreach and clamp instead of DINO's `if`: no synchronisation, a few kernels in all
    norms_G = torch.stack(list(torch._foreach_norm(gradients)))
    factors_G = (norm / (norms_G + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(gradients, list(factors_G.unbind()))
