"""Teachers that follow a student: the copy, its update, and the schedules of a momentum."""

import copy
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

M = TypeVar("M", bound=nn.Module)
# by name, because timm, torchvision and many research codes each have their own class
DEPTH_RATES: Mapping[str, str] = MappingProxyType({"DropPath": "drop_prob", "StochasticDepth": "p"})


def frozen_copy(module: M) -> M:
    """Copy a module: the copy shares nothing, takes no gradient, has no dropout or drop path.

    Their rates become 0 instead of relying on eval(): someone who evaluates the copy and calls
    train() afterwards must not switch them on.
    """
    twin = copy.deepcopy(module).requires_grad_(False)
    for part in twin.modules():
        rate = "p" if isinstance(part, _DropoutNd) else DEPTH_RATES.get(type(part).__name__)
        if rate is not None:
            setattr(part, rate, 0.0)
    return twin


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the teacher: m * teacher + (1 - m) * student; at m = 1 it stays exactly.

    Parameters only, as in all official codes: the teacher's BN statistics are its own, from its
    own forward passes in train mode. Averaging them too would mix two moving averages.
    """
    tensors: list[Tensor] = list(teacher.parameters())
    torch._foreach_lerp_(tensors, list(student.parameters()), 1.0 - momentum)


def cosine_between(start: float, end: float, progress: float) -> float:
    """Go by half a cosine from `start` (progress 0) to exactly `end` (progress 1)."""
    assert 0.0 <= progress <= 1.0, progress  # beyond 1 it would turn back, a momentum pass 1
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * progress))


def linear_between(start: float, end: float, progress: float) -> float:
    """Go straight from `start` (progress 0) to exactly `end` (progress 1)."""
    assert 0.0 <= progress <= 1.0, progress
    return end - (end - start) * (1.0 - progress)
