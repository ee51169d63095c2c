"""Which formats an encoder can be written in, and why the others cannot.

Weights load into a library by name where a call of that library makes the same model; the encoder
knows that call, its `blueprint`. The CIFAR stem of a ResNet is put in after the model was made, and
no argument of timm or torchvision does it: such weights would load into another model, or not.
"""

import importlib.util
from collections.abc import Sequence

from torch import nn

from ..encoders.libraries import Blueprint
from ..encoders.library_encoders import LibraryEncoder
from ..encoders.text_weights import sizes_of
from ..encoders.tokens import TokenEncoder
from ..encoders.wav2vec2 import Wav2Vec2Encoder
from ..errors import ExtraError, SslpipeError
from ..recipe.names import suggest
from .clip_weights import clip_obstacles, is_of_clips

FORMATS = ("timm", "hf", "torchvision", "onnx")
ONNX_MODULES = ("onnx", "onnxscript")
EXTRA = "pip install 'sslpipe[export]'"


def blueprint_of(encoder: nn.Module) -> Blueprint | None:
    """How a library makes the same model; None: none does."""
    return encoder.blueprint if isinstance(encoder, LibraryEncoder) else None


def library_module(encoder: nn.Module) -> nn.Module:
    """The part of an encoder whose names are its library's; all of it if it is a user's own."""
    return encoder.model if isinstance(encoder, LibraryEncoder) else encoder


def obstacles(encoder: nn.Module) -> dict[str, str]:
    """Why formats cannot be written, by format; those that can be are missing."""
    if isinstance(encoder, TokenEncoder):
        return text_obstacles(encoder)
    if is_of_clips(encoder):
        return {**clip_obstacles(encoder), **missing_packages()}
    if isinstance(encoder, Wav2Vec2Encoder):
        return dict.fromkeys(("timm", "torchvision", "onnx"), "it is an encoder of waveforms")
    made, found = blueprint_of(encoder), {}
    if made is None:
        no_name = "no name and arguments of {} make this model"
        found = {name: no_name.format("timm") for name in ("timm", "hf")}
        found["torchvision"] = no_name.format("torchvision")
    elif made.library == "timm":
        found["torchvision"] = f"{made.name} is a model of timm"
    return {**found, **missing_packages()}


def missing_packages() -> dict[str, str]:
    """As `obstacles`: which packages are not there that write a format."""
    missing = [name for name in ONNX_MODULES if importlib.util.find_spec(name) is None]
    return {"onnx": f"{' and '.join(missing)} not installed ({EXTRA})"} if missing else {}


def text_obstacles(encoder: TokenEncoder) -> dict[str, str]:
    """As `obstacles`, of an encoder of text."""
    found = dict.fromkeys(("timm", "torchvision", "onnx"), "it is an encoder of text")
    if sizes_of(encoder) is None:
        found["hf"] = f"transformers has no model like {type(encoder).__name__}"
    return found


def chosen_formats(encoder: nn.Module, asked: Sequence[str] | None) -> tuple[str, ...]:
    """The formats to write; None asks for all that can be.

    Raises:
        ExtraError: a format needs a package that is not installed.
        SslpipeError: there is no such format, or this encoder cannot be written in it.
    """
    found = obstacles(encoder)
    possible = tuple(name for name in FORMATS if name not in found)
    if asked is None:
        return possible
    for name in asked:
        if name not in FORMATS:
            raise SslpipeError(f"export: unknown format {name!r}; {suggest(name, FORMATS)}")
        if name in found:
            kind = ExtraError if EXTRA in found[name] else SslpipeError
            works = ", ".join(possible) or "none but the weights alone"
            raise kind(f"export: not as {name}: {found[name]}; what works here: {works}")
    return tuple(name for name in FORMATS if name in asked)
