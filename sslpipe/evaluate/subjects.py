"""What is evaluated: an encoder with its weights, and the pictures that it is shown."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from ..recipe import Recipe


@dataclass(frozen=True, slots=True)
class Subject:
    """An encoder, and all that its features depend on beside the samples."""

    name: str  # as the user gave it: a checkpoint, a folder, "timm:NAME", "torchvision:NAME"
    encoder: nn.Module
    recipe: Recipe  # its central view is what the encoder is shown: see features.central
    digest: str  # of the weights: "b2:..."
    untrained: Callable[[], nn.Module] | None  # the same encoder before training; None: not known
