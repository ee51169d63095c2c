"""Encoders: images (B, C, H, W) -> features (B, D), from torchvision and timm.

ViTs and cifar_resnet take spectrograms (B, C, F, T), too: pictures of another height and width.
Of clips (B, C, T, H, W) a ViT has tubelets for patches (video.py).
`encoder.model` is the library's own module without its classifier, so its state_dict loads back
into torchvision or timm by name. Nothing is pretrained.
"""

import difflib
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ..batch import ViewSpec
from ..errors import RecipeError
from ..recipe import names
from .audio import AUDIO_ENCODERS
from .libraries import Blueprint, library, timm_blueprint, timm_create
from .library_encoders import ResNet, TimmModel, ViT
from .patches import Resample, check_whole, grid_size, plane_patch, sincos
from .protocols import Encoder, declared_dim
from .sizes import check_sizes
from .starts import Start, start_like
from .text import TEXT_ENCODERS
from .video import VIDEO_ENCODERS, ClipViT, take_clips

# those that are built of the whole spec of their views
OF_VIEWS: Mapping[str, Callable[..., Encoder]] = MappingProxyType(
    {**TEXT_ENCODERS, **AUDIO_ENCODERS, **VIDEO_ENCODERS}
)
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
SHORT: Mapping[str, str] = MappingProxyType(
    {f"vit_{size}": f"vit_{size}_patch16_224" for size in ("tiny", "small", "base", "large")}
)
VIT_NAME = re.compile(r"vit_[a-z0-9]+_patch\d+_\d+")  # timm's plain ViTs with a class token


def build_encoder(entry: names.Entry, view: ViewSpec) -> Encoder:
    """Make the encoder that an entry names, for views of a kind, randomly initialised.

    Names: torchvision's resnet18 to resnet101, cifar_resnet, vit_tiny to vit_large (patch 16), any
    timm name, or the user's own `package.module:Thing`, called as `Thing(view, *, settings)`.
    The views' height fixes the grid of learned positions; ViTs take other sizes too. Of a
    spectrogram both sides do.

    Raises:
        RecipeError: unknown name or setting, or a combination that cannot be built.
        ContractError: the backbone is for images, but the views have no height.
    """
    if ":" in entry.name:
        return own_encoder(entry, view)
    check_encoder(entry)
    if entry.name in OF_VIEWS:
        return cast(Encoder, names.call(OF_VIEWS[entry.name], entry, view))
    name = SHORT.get(entry.name, entry.name)
    return cast(Encoder, names.call(builder(name, entry), entry, name, view))


def check_encoder(entry: names.Entry) -> None:
    """Check name and settings of an encoder, and build nothing.

    Raises:
        RecipeError: unknown name or setting, a setting of a wrong type, or a size of ours below 1
            or beyond use.
    """
    own = ":" in entry.name
    name = SHORT.get(entry.name, entry.name)
    settings = names.bind(names.imported(entry) if own else builder(name, entry), entry)
    if not own:
        check_sizes(entry, settings)


def own_encoder(entry: names.Entry, view: ViewSpec) -> Encoder:
    """Make the user's own encoder.

    Raises:
        RecipeError: it cannot be imported or built, or does not say how many features it gives.
    """
    made = names.call(names.imported(entry), entry, view)
    if not isinstance(made, nn.Module) or declared_dim(made) is None:
        raise RecipeError(
            f"{entry.where}: {entry.name} made a {type(made).__name__}, which is no module with "
            "dim, the number of features; derive it from sslpipe.encoders.Encoder and set dim"
        )
    if view.dtype.is_floating_point:
        try_encoder(made, entry, view)
    return cast(Encoder, made)


def try_encoder(encoder: nn.Module, entry: names.Entry, view: ViewSpec) -> None:
    """Encode two blank views with the user's own encoder.

    Raises:
        RecipeError: what it gives is not (2, dim) numbers.
    """
    training, dim = encoder.training, declared_dim(encoder)
    with torch.no_grad():
        found = encoder.eval()(torch.zeros(2, *view.shape))
    encoder.train(training)
    tensor = isinstance(found, Tensor)
    if not tensor or found.shape != (2, dim) or not found.is_floating_point():
        kind = f"{found.dtype} of {tuple(found.shape)}" if tensor else f"a {type(found).__name__}"
        raise RecipeError(
            f"{entry.where}: {entry.name} gives {kind} for 2 views of {view.shown}; return "
            f"features (2, {dim}), as its dim says, of a floating type"
        )


def builder(name: str, entry: names.Entry) -> Callable[..., Encoder]:
    """Find the function that builds `name`.

    Raises:
        RecipeError: no such backbone.
    """
    if name in OF_VIEWS:
        return OF_VIEWS[name]
    if name in RESNETS:
        return resnet
    if name == "cifar_resnet":
        return cifar_resnet
    timm_names = library("timm").list_models()
    if name not in timm_names:
        # timm knows more than a thousand: show ours and the nearest of theirs
        known = [
            *RESNETS,
            "cifar_resnet",
            *OF_VIEWS,
            *SHORT,
            *difflib.get_close_matches(name, timm_names),
        ]
        raise RecipeError(
            f"{entry.where}: unknown backbone {entry.name!r}; {names.suggest(name, known)}, "
            "and every name of timm"
        )
    return vit if VIT_NAME.fullmatch(name) else timm_model


def other_channels(view: ViewSpec) -> int | None:
    """Tell timm's in_chans; None: three, as it takes for granted."""
    return None if view.size("C") == 3 else view.size("C")


def resnet(
    name: str, view: ViewSpec, *, stem: Literal["imagenet", "cifar"] = "imagenet"
) -> Encoder:
    """Build torchvision's ResNet with zero-initialised residual branches (Goyal et al. 2017).

    stem "cifar": 3x3 convolution of stride 1 and no max-pool, for images of about 32 px (SimCLR,
    appendix B.9); its conv1 does not load back into torchvision's.

    Raises:
        ValueError: the stem of ImageNet, and views that have not three channels.
        ContractError: the views are no images.
    """
    if stem == "imagenet" and (view.size("C") != 3 or view.size("H") < 1):
        raise ValueError(
            f"{name} takes 3 channels; views {view.group!r} are {view.shown} of axes {view.axes}; "
            "set stem: cifar, or choose a vit"
        )
    models = library("torchvision").models
    model = models.get_model(name, weights=None, zero_init_residual=True)
    dim = model.fc.in_features
    model.fc = nn.Identity()
    if stem == "cifar":
        cifar_stem(model, view.size("C"))
        return ResNet(model, dim)
    return ResNet(model, dim, Blueprint("torchvision", name, {}))


def cifar_resnet(
    name: str,
    view: ViewSpec,
    *,
    width: int = 64,
    blocks: tuple[int, int, int, int] = (2, 2, 2, 2),
) -> Encoder:
    """Build timm's ResNet of basic blocks with the CIFAR stem, as narrow and shallow as wanted.

    `width` channels in the first stage, twice as many in each further one; `blocks` per stage. The
    defaults are ResNet-18.
    """
    channels = tuple(width << stage for stage in range(len(blocks)))
    model = timm_create("resnet18", layers=blocks, channels=channels, zero_init_last=True)
    cifar_stem(model, view.size("C"))
    return TimmModel(model, channels[-1])


def cifar_stem(model: Any, inputs: int) -> None:
    """Begin a ResNet with a 3x3 convolution of stride 1 and no max-pool."""
    model.conv1 = nn.Conv2d(inputs, model.conv1.out_channels, kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()


def vit(
    name: str,
    view: ViewSpec,
    *,
    patch_size: int | tuple[int, ...] | None = None,
    drop_path_rate: float = 0.0,
    layer_scale: float | None = None,
    pos_embed: Literal["learned", "sincos"] = "learned",
    pos_resample: Resample = "antialias",
    init: Start = "timm",
    pool: Literal["token", "mean"] = "token",
    embed_dim: int | None = None,
    depth: int | None = None,
    num_heads: int | None = None,
) -> ViT:
    """Build timm's ViT; what is None is as the name says.

    pos_embed "sincos": fixed 2-D sines and cosines, as in MAE and MoCo v3. pos_resample: how
    positions reach the grid of other sizes: "antialias" as in timm, "bicubic_offset" as in DINO,
    iBOT and DINOv2, "bicubic" as in MSN. init: whose weights it starts with (starts.py).
    layer_scale: initial factor of every residual branch, learned; None: no factors. pool: features
    are the class token, or the mean of the patches (I-JEPA; fine-tuned BEiT and SimMIM). Of clips,
    patch_size has frames, rows, columns, by default 2 frames; sincos encodes the number of a patch
    (VideoMAE).

    Raises:
        ValueError: sizes do not fit each other.
    """
    settings = {
        "img_size": grid_size(view), "in_chans": other_channels(view), "dynamic_img_size": True,
        "global_pool": {"token": "token", "mean": "avg"}[pool],
        "patch_size": plane_patch(patch_size, view), "drop_path_rate": drop_path_rate,
        "embed_dim": embed_dim, "depth": depth, "num_heads": num_heads, "init_values": layer_scale,
        "fc_norm": False,
    }  # fmt: skip
    model = timm_create(name, **settings)
    if view.axes == "CTHW":
        take_clips(model, view, patch_size)
    patch = model.patch_embed.patch_size
    check_whole(view, patch)
    start_like(model, init)
    if pos_embed == "sincos":
        fixed = sincos(model.embed_dim, model.patch_embed.grid_size)
        model.pos_embed = nn.Parameter(fixed, requires_grad=False)
    if view.axes == "CTHW":
        return ClipViT(model, model.embed_dim, patch_size=patch)
    made = timm_blueprint(name, **settings)
    return ViT(model, model.embed_dim, made, patch_size=patch[0], resample=pos_resample)


def timm_model(name: str, view: ViewSpec, *, drop_path_rate: float | None = None) -> Encoder:
    """Build any other model of timm, with its own pooling; None: the model's own rate.

    Raises:
        ValueError: the model has no drop path, or cannot take the image size.
    """
    fixed = library("timm").get_pretrained_cfg(name).fixed_input_size
    size = grid_size(view)
    settings = {
        "img_size": size if fixed else None,  # convolutional models know no such setting
        "in_chans": other_channels(view), "drop_path_rate": drop_path_rate,
    }  # fmt: skip
    model = timm_create(name, **settings)
    return TimmModel(model, model.head_hidden_size, timm_blueprint(name, **settings))
