"""The libraries that encoders come from, timm and torchvision, and what timm's models tell us.

They are imported when they are needed: losses and batches work without them.
"""

import importlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from torch import nn

from ..errors import ExtraError


@dataclass(frozen=True, slots=True)
class Blueprint:
    """How a library makes the same model without us, so that weights load into it by name."""

    library: Literal["timm", "torchvision"]
    name: str
    arguments: Mapping[str, Any]  # of timm.create_model, besides num_classes; plain data


def library(name: str) -> Any:
    """Import a module of timm or torchvision.

    Raises:
        ExtraError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ExtraError(
            f"{name} is not installed ({error}); pip install 'sslpipe[train]'"
        ) from error


def timm_create(name: str, **settings: Any) -> Any:
    """Make a model of timm without classifier; settings that are None stay the model's own.

    Raises:
        ValueError: timm refuses the settings, or would refuse them in the first step.
    """
    if not 0 <= (settings.get("drop_path_rate") or 0) < 1:
        raise ValueError(f"drop_path_rate = {settings['drop_path_rate']} must lie in [0, 1)")
    given = {key: value for key, value in settings.items() if value is not None}
    try:
        return library("timm").create_model(name, pretrained=False, num_classes=0, **settings)
    except (AssertionError, TypeError) as error:
        raise ValueError(f"timm refuses {given} ({error}); change these settings") from error


def timm_blueprint(name: str, **settings: Any) -> Blueprint:
    """Make the blueprint of what `timm_create` makes of the same settings."""
    given = {key: value for key, value in settings.items() if value is not None}
    given.pop("drop_path_rate", None)  # of training alone: whoever fine-tunes sets another
    return Blueprint("timm", name, given)


@runtime_checkable
class NamesUndecayed(Protocol):
    """A model that names parameters which weight decay should spare, as timm's do."""

    def no_weight_decay(self) -> Collection[str]:
        """Give the names of these parameters."""


def undecayed_by_name(encoder: nn.Module) -> Iterator[nn.Parameter]:
    """Yield class token and learned positions of timm models, which some codes do not decay."""
    for model in encoder.modules():
        if isinstance(model, NamesUndecayed):
            names = model.no_weight_decay()
            yield from (p for name, p in model.named_parameters() if name in names)


@runtime_checkable
class NamesLayers(Protocol):
    """A model that can tell which layer a parameter belongs to, as timm's do."""

    def group_matcher(self) -> Any:
        """Give what timm.models.group_parameters wants to know."""


def layers_of(method: nn.Module) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield the prefix of each timm model within `method`, and its parameters' layers from 0 up.

    It is timm's own grouping, so decoders and heads, whose blocks look alike, are left alone.
    """
    for prefix, model in method.named_modules():
        if isinstance(model, NamesLayers):
            matcher = model.group_matcher()
            yield prefix, library("timm.models").group_parameters(model, matcher, reverse=True)
