"""Encoders that others trained: timm's, torchvision's ResNets, and exported folders.

    timm:NAME, NAME              any model of timm, vit_small_patch16_224.dino
    torchvision:NAME, resnet50   torchvision's ResNets, with the library's best weights
    FOLDER                       config.json and model.safetensors, as timm writes them

Weights that are not in the library's cache are fetched by the library. What pictures the model
expects comes with it: timm's pretrained_cfg, the transforms of torchvision's weights.
"""

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, cast

from torch import nn

from ..errors import SslpipeError
from ..recipe.names import suggest
from .central_view import CentralView, Channels, Resampling
from .image import RESNETS, SHORT
from .libraries import library
from .library_encoders import LibraryEncoder, ResNet, TimmModel, TimmViT
from .protocols import Encoder

CONFIG, WEIGHTS = "config.json", "model.safetensors"  # of an exported folder
PREFIXES = ("timm", "torchvision")
HELP = "connect once, fill the library's cache from another machine, or give an exported folder"


def pretrained(name: str, *, weights: bool = True) -> tuple[Encoder, CentralView]:
    """Make the encoder that a name of a library or a folder means, and say what it expects.

    weights: with the trained ones; False: freshly initialised from torch's global generator (fence
    it by train.world.keyed).

    Raises:
        SslpipeError: no such name, no weights to be had, a damaged folder, or pictures that we
            cannot make for it.
        ExtraError: the library is not installed.
    """
    source, _, rest = name.partition(":")
    if is_exported(name):
        return exported(name, weights=weights)
    if source == "torchvision" or name in RESNETS:
        return torchvision_resnet(rest or name, weights=weights)
    plain = rest if source == "timm" else name
    return timm_named(SHORT.get(plain, plain), weights=weights)


def is_exported(place: str | Path) -> bool:
    """Tell whether a folder holds a model as timm writes it."""
    return (Path(place) / CONFIG).is_file()


def is_library_name(name: str) -> bool:
    """Tell whether `name` is one of timm or torchvision: by its prefix, or known to them."""
    if name.partition(":")[0] in PREFIXES or name in RESNETS or name in SHORT:
        return True
    return bool(library("timm").is_model(name))


def exported(folder: str, *, weights: bool) -> tuple[Encoder, CentralView]:
    """Load a folder that `sslpipe export` or timm.models.save_for_hf wrote.

    Raises:
        SslpipeError: a file is missing, or they do not fit each other.
    """
    if weights and not (Path(folder) / WEIGHTS).is_file():
        raise SslpipeError(f"{folder}: has {CONFIG}, but no {WEIGHTS}; export it again")
    place = f"local-dir:{folder}"
    try:
        model = library("timm").create_model(place, pretrained=weights, num_classes=0)
    except Exception as error:  # noqa: BLE001, RUF100  # of timm, safetensors, json and torch
        raise SslpipeError(
            f"{folder}: timm cannot load it ({one_line(error)}); export it again"
        ) from error
    return wrapped(model), expected(folder, model)


def timm_named(name: str, *, weights: bool) -> tuple[Encoder, CentralView]:
    """Make a model of timm; a tag behind a point names its weights.

    Raises:
        SslpipeError: an unknown name or tag, or weights that cannot be had.
    """
    timm = library("timm")
    if not timm.is_model(name):
        known = timm.list_models()
        near = suggest(name, [*RESNETS, *SHORT])
        raise SslpipeError(
            f"timm:{name}: timm {timm.__version__} has no such model among its {len(known):,}; "
            f"{near}, and every name of timm.list_models()"
        )
    where, tag = f"timm:{name}", name.partition(".")[2]
    tags = timm.list_pretrained(name.partition(".")[0] + ".*")
    if tag and name not in tags:
        raise SslpipeError(f"{where}: timm has no such weights; {suggest(name, tags)}")
    if weights and not tags:
        raise SslpipeError(f"{where}: timm has no weights of this model; name another one")
    wanted = weights_of(timm.get_pretrained_cfg(name)) if weights else ""
    model = fetched(
        where, wanted, lambda: timm.create_model(name, pretrained=weights, num_classes=0)
    )
    return wrapped(model), expected(where, model)


def torchvision_resnet(name: str, *, weights: bool) -> tuple[Encoder, CentralView]:
    """Make a ResNet, ResNeXt or wide ResNet of torchvision, with its DEFAULT weights.

    Raises:
        SslpipeError: it is none, or its weights cannot be had.
    """
    models = library("torchvision.models")
    known = [n for n in models.list_models(models) if n.startswith(("resn", "wide_resn"))]
    where = f"torchvision:{name}"
    if name not in known:
        raise SslpipeError(
            f"{where}: is no ResNet of torchvision; {suggest(name, known)}; other models: timm:NAME"
        )
    best = models.get_model_weights(name).DEFAULT
    chosen = best if weights else None
    model = fetched(where, best.url, lambda: models.get_model(name, weights=chosen))
    dim = model.fc.in_features
    model.fc = nn.Identity()
    shown = best.transforms()
    return ResNet(model, dim), CentralView(
        size=(shown.crop_size[0], shown.crop_size[0]),
        resize=shown.resize_size[0],
        mean=triple(shown.mean),
        std=triple(shown.std),
        interpolation=resampling(where, shown.interpolation.value),
    )


def fetched(where: str, wanted: str, make: Callable[[], Any]) -> Any:
    """Build a model whose library may have to fetch its weights; what it prints goes to stderr.

    torch.hub says "Downloading" on stdout, which would stand in front of a command's JSON.

    Raises:
        SslpipeError: they are neither in the cache nor to be had; says which file.
    """
    try:
        with redirect_stdout(sys.stderr):
            return make()
    except Exception as error:  # noqa: BLE001, RUF100  # of any of the clients behind the library
        raise SslpipeError(
            f"{where}: its weights, {wanted}, are not in the cache and cannot be fetched "
            f"({one_line(error)}); {HELP}"
        ) from error


def weights_of(config: Any) -> str:
    """Name the file of weights that a timm config means: a repository of its hub, or a URL."""
    if config.hf_hub_id:
        return f"{config.hf_hub_id}/{config.hf_hub_filename or WEIGHTS}"
    return str(config.url or config.file)


def wrapped(model: Any) -> LibraryEncoder:
    """Make an encoder of a timm model without classifier."""
    models = library("timm.models")
    shows_blocks = (models.VisionTransformer, models.Eva, models.Beit)
    kind = TimmViT if isinstance(model, shows_blocks) else TimmModel
    return kind(model, model.head_hidden_size)


def expected(where: str, model: Any) -> CentralView:
    """Read what timm's config says of the pictures.

    Raises:
        SslpipeError: it wants what our central views are not: no squares, no RGB, other crops.
    """
    config = library("timm.data").resolve_model_data_config(model)
    channels, height, width = config["input_size"]
    if channels != 3 or height != width or config["crop_mode"] not in ("center", "squash"):
        raise SslpipeError(
            f"{where}: expects {channels} x {height} x {width} pictures by crop mode "
            f"{config['crop_mode']!r}; only squares in RGB, cropped or squeezed, can be made here"
        )
    squeezed = config["crop_mode"] == "squash"
    return CentralView(
        size=(height, width),
        resize=None if squeezed else int(height / config["crop_pct"]),  # as timm rounds
        mean=triple(config["mean"]),
        std=triple(config["std"]),
        interpolation=resampling(where, config["interpolation"]),
    )


def triple(numbers: Any) -> Channels:
    """Make three floats of what a config lists."""
    red, green, blue = map(float, numbers)
    return red, green, blue


def resampling(where: str, name: str) -> Resampling:
    """Check that pictures can be resized as a model expects.

    Raises:
        SslpipeError: neither bilinear nor bicubic.
    """
    if name not in ("bilinear", "bicubic"):
        raise SslpipeError(
            f"{where}: expects pictures resized by {name!r}; here they are by bilinear or bicubic"
        )
    return cast(Resampling, name)


def one_line(error: BaseException) -> str:
    """Put an error into one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(": ")
