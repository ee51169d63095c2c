"""Features in a file: safetensors, which other tools read without executing anything.

    {trained,untrained,BASELINE}/{features,blocks,patches}  float32, see Features
    labels, uids, contents                                  int64, the same samples for all encoders
    metadata "sslpipe"                                      JSON: origin, encoders, class names

What is not known of an encoder is not there. The bytes are a function of the content.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..encoders.libraries import library
from ..errors import StateError
from ..process import regular_file
from ..shards.side_files import open_to_others, other_format, parse_json, written_whole
from .encoding import NONE
from .features import Features

FORMAT = 1
SHARED = ("labels", "uids", "contents")
OWN = ("features", "blocks", "patches")


@dataclass(frozen=True, slots=True)
class FeatureOrigin:
    """What features are a function of, up to the rounding of a device."""

    weights: str  # digest of the subject
    shards: str  # fingerprint of the manifest
    transform: str  # fingerprint of the recipe of the central views, batch size included
    precision: str  # of the forward pass: fp32 or bf16
    encoders: tuple[str, ...]
    version: str  # of sslpipe


def write_features(path: Path, found: Mapping[str, Features], origin: FeatureOrigin) -> None:
    """Write the features of the same samples by several encoders, whole or not at all.

    Raises:
        ExtraError: safetensors is not installed.
    """
    save_file = library("safetensors.torch").save_file
    first = next(iter(found.values()))
    tensors = {name: column_of(first, name) for name in SHARED}
    for encoder, features in found.items():
        assert features.uids.equal(first.uids), "encoders of other samples"
        tensors |= {f"{encoder}/{name}": column_of(features, name) for name in OWN}
    known = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor.numel()}
    said = {"format": FORMAT, "origin": asdict(origin), "classes": first.classes}
    # one entry: safetensors writes several in an order that changes from run to run
    metadata = {"sslpipe": json.dumps(said, sort_keys=True, ensure_ascii=False)}
    with written_whole(path) as part, open_to_others(part):
        save_file(known, part, metadata=metadata)


def column_of(features: Features, name: str) -> Tensor:
    """Take a column of features by its name."""
    columns: dict[str, Tensor] = {
        "labels": features.labels, "uids": features.uids, "contents": features.contents,
        "features": features.features, "blocks": features.blocks, "patches": features.patches,
    }  # fmt: skip
    return columns[name]


def read_features(path: Path) -> dict[str, Features]:
    """Read the features of all encoders of a file: "trained", "untrained", a baseline.

    Raises:
        StateError: it is missing, damaged, or no file of features.
        SslpipeError: a feature is not finite.
        ExtraError: safetensors is not installed.
    """
    said = read_said(path)
    tensors: dict[str, Tensor] = library("safetensors.torch").load_file(path)
    empty = {"contents": torch.empty(0, dtype=torch.int64)}
    labels, uids, contents = (tensors.get(name, empty.get(name, NONE)) for name in SHARED)
    found = {}
    for encoder in said["origin"]["encoders"]:
        features, blocks, patches = (tensors.get(f"{encoder}/{name}", NONE) for name in OWN)
        classes = tuple(said["classes"])
        found[encoder] = Features(features, labels, uids, classes, contents, blocks, patches)
    return found


def read_origin(path: Path) -> FeatureOrigin:
    """Tell what the features of a file were made of.

    Raises:
        StateError: it is missing, damaged, or no file of features.
        ExtraError: safetensors is not installed.
    """
    origin = read_said(path)["origin"]
    return FeatureOrigin(**{**origin, "encoders": tuple(origin["encoders"])})


def read_said(path: Path) -> dict[str, Any]:
    """Read the metadata of a file, and see that its tensors are whole.

    Raises:
        StateError: it is missing, damaged, or no file of features.
    """
    safetensors = library("safetensors")
    try:
        with safetensors.safe_open(regular_file(path), framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise StateError(
            f"{path}: no features can be read ({error}); extract them again"
        ) from error
    try:
        said = parse_json(metadata.get("sslpipe", "{}"))
        found: dict[str, Any] = said if isinstance(said, dict) else {}
    except ValueError:  # the metadata of another file of ours, an export
        found = {}
    if (number := found.get("format")) != FORMAT:
        fault = other_format(number, FORMAT, "extract them again", kind="format of features")
        raise StateError(f"{path}: {fault}")
    return found
