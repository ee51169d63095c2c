"""Checkpoints: written whole or not at all, read without executing anything, never mixed up."""

import hashlib
import os
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from ..batch import ViewSpec
from ..encoders import build_encoder
from ..errors import RecipeError, StateError
from ..recipe import Recipe, parse_recipe
from ..recipe.schema import FREE
from ..recipe.sections import yaml_data
from ..shards.side_files import other_format, written_whole

State = dict[str, Any]  # of a method or an optimizer
FORMAT = 2
LAST = "last.pt"  # of a run's folder
LATER = {"start", "parts"}  # fields that checkpoints of this format did not have at first


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All that a run needs to go on, and an evaluation to rebuild the encoder."""

    recipe: str  # YAML
    fingerprint: str  # of the recipe
    view: dict[str, Any]  # that the backbone was built for: see `view_record`
    step: int  # optimizer steps done
    stream: dict[str, Any]
    encoder: dict[str, Any]  # its storages are those of `method`, which torch.save writes once
    method: dict[str, Any]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    torch: str  # version
    format: int = FORMAT
    start: dict[str, str] | None = None  # the weights that it began with: WarmStart.record
    # of a sharded run: the "folder" beside with all tensors (part_files.py), so that `encoder` is
    # empty, and how its names begin among the method's, "encoder". None: they are in the file
    parts: dict[str, str] | None = None


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write atomically: after a crash, `path` holds the old checkpoint or the new one.

    Raises:
        StateError: a state holds more than tensors and plain data, which `read_checkpoint` refuses.
        OSError: the disk is full; it names `path`.
    """
    content = {field.name: getattr(checkpoint, field.name) for field in fields(checkpoint)}
    with written_whole(path) as part:
        with part.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(part)
        if foreign:
            raise StateError(
                f"{path}: not written, the states hold {', '.join(sorted(foreign))}; "
                "keep only tensors, numbers, strings, lists and dicts in state_dict()"
            )


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU, with all tensors, wherever they lie.

    Raises:
        StateError: it is missing, damaged, or of another format.
    """
    return with_parts(path, read_stored(path))


def with_parts(path: Path, stored: Checkpoint) -> Checkpoint:
    """Give a checkpoint that was read from `path` with its tensors, if they lie beside it.

    Raises:
        StateError: they are missing or damaged.
    """
    if stored.parts is None:
        return stored
    from .part_files import read_all_parts  # a second of imports, which few need

    tensors = read_all_parts(path.parent / stored.parts["folder"])
    method, optimizer = put_together(tensors, (stored.method, stored.optimizer))
    start = stored.parts["encoder"]
    encoder = {
        name.removeprefix(start): tensor
        for name, tensor in method.items()
        if name.startswith(start)
    }
    return replace(stored, encoder=encoder, method=method, optimizer=optimizer, parts=None)


def taken_apart(method: State, optimizer: State) -> tuple[dict[str, Tensor], tuple[State, State]]:
    """Split states into their tensors, `method/NAME` and `optimizer/INDEX/KEY`, and the rest."""
    found = {f"method/{name}": value for name, value in method.items()} | {
        f"optimizer/{index}/{key}": value
        for index, state in optimizer["state"].items()
        for key, value in state.items()
    }
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    state = {
        index: {k: v for k, v in state.items() if not isinstance(v, Tensor)}
        for index, state in optimizer["state"].items()
    }
    others = {name: value for name, value in method.items() if not isinstance(value, Tensor)}
    return tensors, (others, {**optimizer, "state": state})


def put_together(tensors: Mapping[str, Tensor], rest: tuple[State, State]) -> tuple[State, State]:
    """Give states of method and optimizer of what `taken_apart` split them into."""
    method, optimizer = dict(rest[0]), rest[1]
    state = {index: dict(values) for index, values in optimizer["state"].items()}
    for name, tensor in tensors.items():
        kind, own = name.split("/", 1)
        if kind == "method":
            method[own] = tensor
        else:
            index, key = own.split("/", 1)
            state[int(index)][key] = tensor
    return method, {**optimizer, "state": state}


def read_stored(path: Path) -> Checkpoint:
    """Read a checkpoint as it was written: that of a sharded run without its tensors.

    Raises:
        StateError: it is missing, damaged, or of another format.
    """
    with told_of(path):
        check_crcs(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    return check_format(path, content)


@contextmanager
def told_of(path: Path) -> Iterator[None]:
    """Have whatever a damaged file raises say what is wrong with it.

    Raises:
        StateError: it is missing, damaged, or no file of ours.
    """
    if not path.is_file():  # opening a named pipe would wait for ever
        fault = "is no file" if path.exists() else "there is no checkpoint"
        raise StateError(f"{path}: {fault}; check the folder, or start a new run")
    try:
        yield
    except pickle.UnpicklingError as error:  # torch's own text advises to load it unsafely
        raise StateError(
            f"{path}: holds more than tensors and plain data, so sslpipe did not write it; "
            "name the last.pt of a run"
        ) from error
    except PermissionError as error:
        raise StateError(f"{path}: cannot be read ({error.strerror}); mend its rights") from error
    except Exception as error:  # zipfile and torch raise a dozen kinds on damaged bytes
        raise StateError(
            f"{path}: damaged ({error}); restore it, or resume from another checkpoint"
        ) from error


def check_crcs(path: Path) -> None:
    """Verify the CRC32 of every record, which torch.load does not.

    Raises:
        BadZipFile: a record is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        bad = archive.testzip()
    if bad is not None:
        raise zipfile.BadZipFile(f"CRC32 of {bad} does not match")


def check_format(path: Path, content: Any) -> Checkpoint:
    """Make a Checkpoint of what a file holds.

    Raises:
        StateError: it is no checkpoint of ours, or of another format.
    """
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        remedy = "use the version of sslpipe that wrote it"
        fault = other_format(found, FORMAT, remedy, kind="checkpoint format")
        raise StateError(f"{path}: {fault}")
    known = {field.name for field in fields(Checkpoint)}
    if differing := (known ^ set(content)) - LATER:
        raise StateError(
            f"{path}: has other fields than a checkpoint ({', '.join(map(str, differing))}); "
            "name the last.pt of a run"
        )
    return Checkpoint(**content)


def check_recipe(path: Path, checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Refuse to go on with another recipe than the run began with.

    Raises:
        StateError: the fingerprints differ.
    """
    if checkpoint.fingerprint != recipe.fingerprint:
        raise StateError(
            f"{path}: written by another recipe than {recipe.path} "
            f"({changes(checkpoint, recipe)}); resume with the recipe of the run (recipe.yaml "
            "beside the checkpoint), or start a new run in another folder"
        )


def changes(checkpoint: Checkpoint, recipe: Recipe) -> str:
    """`train.epochs: 100 there, 200 now`, for all that differs and counts; fingerprints if none."""
    try:
        old = yaml_data(parse_recipe(checkpoint.recipe))
    except RecipeError:  # of another version
        old = yaml.safe_load(checkpoint.recipe)
    free = ("run.", *(f"train.{name}" for name in FREE))  # may change in a run
    before, now = (
        {name: value for name, value in flat(data) if not name.startswith(free)}
        for data in (old, yaml_data(recipe))
    )
    found = [
        f"{name}: {before.get(name, 'nothing')} there, {now.get(name, 'nothing')} now"
        for name in dict.fromkeys((*before, *now))
        if before.get(name) != now.get(name)
    ]
    prints = f"fingerprint {checkpoint.fingerprint} there, {recipe.fingerprint} now"
    return ", ".join(found) or prints


def flat(data: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names of the values of nested data."""
    if isinstance(data, Mapping) and data:
        for key, value in data.items():
            yield from flat(value, f"{place}.{key}" if place else str(key))
    else:
        yield place, data


def in_run(path: Path) -> Path:
    """Name the last checkpoint in the folder of a run; a file stays what it is."""
    return path / LAST if path.is_dir() else path


def load_encoder(path: str | Path) -> tuple[nn.Module, Recipe]:
    """Rebuild the encoder of a checkpoint, or of a run's folder, with the recipe that trained it.

    The encoder is on the CPU.

    Raises:
        StateError: the checkpoint is missing or damaged, or the encoder is not the recipe's.
    """
    path = in_run(Path(path))
    return encoder_of(path, read_checkpoint(path))


def encoder_of(path: Path, checkpoint: Checkpoint) -> tuple[nn.Module, Recipe]:
    """Rebuild the encoder of a checkpoint that was read from `path`, with its recipe.

    Raises:
        StateError: the encoder is not the recipe's.
    """
    recipe = parse_recipe(checkpoint.recipe, path=f"{path} (recipe)", seen=False)
    assert recipe.train is not None
    encoder = build_encoder(recipe.train.backbone, ViewSpec(**checkpoint.view))
    try:
        encoder.load_state_dict(checkpoint.encoder)
    except RuntimeError as error:
        words = " ".join(str(error).split())  # a line per parameter, as torch says it
        raise StateError(
            f"{path}: its encoder is not the backbone {recipe.train.backbone.name!r} of its "
            f"recipe ({words[:300]}); load it with the code that built it"
        ) from error
    return encoder, recipe


def view_record(view: ViewSpec) -> dict[str, Any]:
    """The fields of a view spec that encoders are built for, as plain data."""
    return {
        "group": view.group, "count": view.count, "axes": view.axes, "shape": view.shape,
        "vocabulary": view.vocabulary,
    }  # fmt: skip


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """Hash names, types, shapes and bytes of weights, whatever their order: "b2:..."."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(raw.numpy().data)
    return "b2:" + digest.hexdigest()
