"""The files of an export that others read: weights, timm's config, ONNX graph."""

import json
import os
import re
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..encoders.central_view import CentralView
from ..encoders.libraries import Blueprint, library
from ..encoders.library_encoders import LibraryEncoder
from ..shards.side_files import open_to_others
from .preprocessing import central_view
from .trained import Trained

OURS = "sslpipe"  # in the metadata of weights: that an export of ours holds them, of which version
FROM_TIMM = ("first_conv", "classifier", "fixed_input_size")  # by which timm puts other heads on
EXAMPLES = 2  # the batch that a graph is made with


def write_tensors(path: Path, state: Mapping[str, Tensor], said: Mapping[str, str]) -> None:
    """Write tensors, each with storage of its own, which safetensors asks for.

    Raises:
        ExtraError: safetensors is not installed.
        OSError: the disk is full or the folder closed; safetensors tells it in words alone.
    """
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
    failed = library("safetensors").SafetensorError
    try:
        with open_to_others(path):
            library("safetensors.torch").save_file(tensors, str(path), dict(said))
    except failed as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), str(path)) from error


def metadata(trained: Trained) -> dict[str, str]:
    """All that ours is built again from; `format` is what transformers asks for."""
    return {
        "format": "pt",
        OURS: version("sslpipe"),
        "recipe": trained.recipe_yaml,
        "fingerprint": trained.recipe.fingerprint,
        "data": trained.data,
        "branch": trained.branch,
        "step": str(trained.step),
        "view": json.dumps(dict(trained.view)),
    }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object as others like to read it."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def is_export(folder: Path) -> bool:
    """Tell whether a folder was written by `export_checkpoint`."""
    weights, safetensors = folder / "model.safetensors", library("safetensors")
    if not weights.is_file():
        return False
    try:
        with safetensors.safe_open(str(weights), framework="pt") as file:
            return OURS in (file.metadata() or {})
    except (safetensors.SafetensorError, OSError):
        return False


def write_config(path: Path, trained: Trained, blueprint: Blueprint, license_name: str) -> None:
    """Write what timm and transformers make the model by: name, arguments, preprocessing.

    It is written here and not by `timm.models.save_for_hf`, which repeats num_classes in
    model_args: transformers passes num_classes itself, and refuses it.
    """
    defaults = library("timm").get_pretrained_cfg(blueprint.name)
    known = {name: getattr(defaults, name) for name in FROM_TIMM}
    if blueprint.arguments.get("dynamic_img_size"):
        known["fixed_input_size"] = False
    assert isinstance(trained.encoder, LibraryEncoder)
    config: dict[str, Any] = {
        "architecture": blueprint.name,
        "num_classes": 0,
        "num_features": trained.encoder.dim,
        "model_args": dict(blueprint.arguments),
        "pretrained_cfg": {
            "tag": "sslpipe",
            "custom_load": False,
            "num_classes": 0,
            "license": license_name,
            **as_timm_says(central_view(trained.recipe)),
            **known,
        },
    }
    write_json(path, config)


def as_timm_says(view: CentralView) -> dict[str, Any]:
    """The part of timm's `pretrained_cfg` that its transforms and Hugging Face's read."""
    return {
        "input_size": [3, *view.size],
        "crop_pct": view.crop_pct,
        "crop_mode": "squash" if view.resize is None else "center",
        "interpolation": view.interpolation,
        "mean": list(view.mean),
        "std": list(view.std),
    }


def write_onnx(path: Path, trained: Trained) -> None:
    """Write the encoder as a graph: `images` (B, C, H, W) float32 -> `features` (B, D), any B.

    H and W are the training views': the positions of a ViT are part of the graph. Above 2 GB the
    weights lie in a file beside it, as the format wants it. Slow: half a minute for a ViT.
    """
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():  # of torch about its own parts
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            trained.encoder,
            (trained.examples(EXAMPLES),),
            dynamo=True,
            dynamic_shapes=({0: batch},),
            input_names=["images"],
            output_names=["features"],
            verbose=False,
        )
    assert program is not None
    program.save(str(path))
