"""Methods: one file each, and the way from a recipe's entry to a method under anyone's trainer."""

import itertools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from .. import lookup
from ..batch import BatchSpec
from .colorization import Colorization
from .dino import DINO
from .inpainting import Inpainting
from .jigsaw import Jigsaw
from .mae import MAE
from .method import Method, Output
from .relative_patch import RelativePatch
from .rotation import Rotation
from .simclr import SimCLR

__all__ = ["METHODS", "Method", "Output", "build", "follow"]

METHODS: Mapping[str, Callable[..., Method]] = MappingProxyType(
    {
        "colorization": Colorization,
        "dino": DINO,
        "inpainting": Inpainting,
        "jigsaw": Jigsaw,
        "mae": MAE,
        "relative_patch": RelativePatch,
        "rotation": Rotation,
        "simclr": SimCLR,
    }
)


def build(entry: lookup.Entry, encoder: nn.Module, spec: BatchSpec) -> Method:
    """Make the method that an entry names; a user's own is `package.module:Class`.

    Raises:
        RecipeError: unknown name or setting.
        ContractError: the batches or the encoder cannot feed the method.
    """
    method = lookup.choose(entry, METHODS, "method")
    return cast(Method, lookup.call(method, entry, encoder, spec))


def follow(
    optimizer: torch.optim.Optimizer, method: Method, total_steps: int, *, done: int = 0
) -> RemovableHandle:
    """Run `method.after_step` after every optimizer step, whoever the trainer is.

    `method` is the bare module, not its DDP wrapper. `done` are the steps before a resume.
    Accumulated batches and steps that a gradient scaler skips do not count, as it should be.
    """
    assert 0 <= done < total_steps, (done, total_steps)
    steps = itertools.count(done + 1)

    def hook(*_: Any) -> None:
        # a trainer that runs on past total_steps stays at 1: schedules must not turn back
        method.after_step(min(next(steps) / total_steps, 1.0))

    return optimizer.register_step_post_hook(hook)
