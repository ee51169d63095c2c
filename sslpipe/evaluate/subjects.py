"""What is evaluated: an encoder with its weights, and the pictures that it is shown."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from ..batch import BatchSpec
from ..encoders.central_view import CentralView
from ..encoders.pretrained import (
    PREFIXES,
    is_exported,
    is_library_name,
    pretrained,
)
from ..errors import SslpipeError, StateError
from ..methods import Method
from ..modalities.parts import Part, batch_spec, files_of, parts_of
from ..recipe import Entry, Recipe
from ..recipe.schema import StreamSection, ViewSection
from ..shards.manifest import read_manifest
from ..train.checkpoint import LAST, Checkpoint, encoder_of, read_checkpoint, weights_digest
from ..train.run import initial_method
from ..train.world import keyed

KINDS = (
    "the last.pt of a run, its folder, an exported folder, timm:NAME or torchvision:NAME "
    "(timm:vit_small_patch16_224.dino)"
)


@dataclass(frozen=True, slots=True)
class Subject:
    """An encoder, and all that its features depend on beside the samples."""

    name: str  # as the user gave it: a checkpoint, a folder, "timm:NAME", "torchvision:NAME"
    encoder: nn.Module
    recipe: Recipe  # its central view is what the encoder is shown: see features.central
    digest: str  # of the weights: "b2:..."
    untrained: Callable[[], nn.Module] | None  # the same encoder before training; None: not known
    checkpoint: Path | None = None  # a file of ours, which holds the whole method
    shards: str = ""  # fingerprint of what it was trained on, where that is known


def open_subject(name: str | Path, shards: str | Path | None = None) -> Subject:
    """Load what a user names: a checkpoint, a folder of a run or an export, a library's model.

    `shards`: what it is to encode; those of a library's model, which may have to be fetched, are
    looked at before.

    A checkpoint's encoder before training is the run's, weight by weight. That of a library's model
    is its architecture, initialised by the library from seed 0.

    Raises:
        StateError: a checkpoint that is damaged, of another version, or of another backbone.
        SslpipeError: there is nothing of that name, or its weights cannot be had.
        ExtraError: the library is not installed.
    """
    path = Path(name)
    if is_exported(path) or str(name).partition(":")[0] in PREFIXES:
        check_pictures(str(name), shards)
        return of_library(str(name))
    if path.is_dir():
        return of_checkpoint(last_of(path), str(name))
    bare = len(path.parts) == 1 and not path.exists()
    if bare and is_library_name(str(name)):
        check_pictures(str(name), shards)
        return of_library(str(name))
    if not path.exists():
        raise SslpipeError(f"{name}: there is no such file, folder or model; give {KINDS}")
    return of_checkpoint(path, str(name))


def check_pictures(name: str, shards: str | Path | None) -> None:
    """Make sure that shards hold what a library's model takes.

    Raises:
        SslpipeError: they hold something else than images.
        ShardError: what is wrong with the shards.
    """
    held = "image" if shards is None else read_manifest(shards).modality
    if held != "image":
        raise SslpipeError(
            f"{name}: is a model of pictures, and {shards} holds {held}; name a run on {held}"
        )


def last_of(folder: Path) -> Path:
    """Find the checkpoint of a run's folder.

    Raises:
        SslpipeError: it has none.
    """
    if not (folder / LAST).is_file():
        raise SslpipeError(f"{folder}: holds neither {LAST} nor config.json; give {KINDS}")
    return folder / LAST


def of_checkpoint(path: Path, name: str) -> Subject:
    """Make the subject of a checkpoint of ours.

    Raises:
        StateError: it is damaged, of another version, or of another backbone.
    """
    checkpoint = read_checkpoint(path)
    encoder, recipe = encoder_of(path, checkpoint)
    check_named_files(path, checkpoint, recipe)
    return Subject(
        name,
        encoder,
        recipe,
        weights_digest(encoder.state_dict()),
        untrained=partial(first_encoder, recipe),
        checkpoint=path,
        shards=str(checkpoint.stream.get("manifest", "")),
    )


def check_named_files(path: Path, checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Make sure that the files that a recipe names, a vocabulary, are those of the run.

    Raises:
        StateError: one has changed, so ids would mean other tokens than in training.
        RecipeError: one is missing, or no such file.
    """
    trained = str(checkpoint.stream.get("recipe", "")).partition(" ")[2]
    found = " ".join(files_of(recipe)) if trained else ""
    if found != trained:
        raise StateError(
            f"{path}: was trained with {trained}, and the file that its recipe names has {found} "
            "now; put that of the run back"
        )


def whole_method(recipe: Recipe, spec: BatchSpec, checkpoint: Path | None) -> Method:
    """Build the method of a checkpoint, with heads and all; None: as a run begins.

    Raises:
        StateError: the checkpoint is damaged, or of another method.
    """
    method = initial_method(recipe, spec)
    if checkpoint is not None:
        try:
            method.load_state_dict(read_checkpoint(checkpoint).method)
        except RuntimeError as error:
            words = " ".join(str(error).split())
            raise StateError(
                f"{checkpoint}: does not fit its method ({words[:300]}); load it with the code "
                "that wrote it"
            ) from error
    return method


def whole_methods(subject: Subject, spec: BatchSpec, *, untrained: bool) -> dict[str, Method]:
    """Build "trained", the method of a subject's checkpoint, and "untrained", as its run began.

    Raises:
        StateError: the checkpoint is damaged, or of another method.
    """
    files = {"trained": subject.checkpoint, **({"untrained": None} if untrained else {})}
    return {name: whole_method(subject.recipe, spec, file) for name, file in files.items()}


def first_encoder(recipe: Recipe) -> nn.Module:
    """Build the encoder that a run began with; some methods draw parts of it anew."""
    return initial_method(recipe, parts_and_spec(recipe)[1]).encoder


def parts_and_spec(recipe: Recipe) -> tuple[list[Part], BatchSpec]:
    """Build what a recipe decides of its batches, without data."""
    device = torch.device("cpu")
    with ThreadPoolExecutor(1) as threads:
        parts = parts_of(recipe, device=device, threads=threads)
        # an epoch's length counts for memories of samples, not for encoders
        return parts, batch_spec(recipe, parts, world_size=1, batches=1)


def of_library(name: str) -> Subject:
    """Make the subject of a model of timm or torchvision, or of an exported folder.

    Raises:
        SslpipeError: there is no such model, or its weights cannot be had.
        ExtraError: the library is not installed.
    """
    encoder, expected = pretrained(name)
    recipe = recipe_of(name, expected)
    return Subject(
        name, encoder, recipe, weights_digest(encoder.state_dict()), partial(fresh_model, name)
    )


def fresh_model(name: str) -> nn.Module:
    """Build the architecture of a library's model, its weights drawn from seed 0."""
    with keyed("init", seed=0):
        return pretrained(name, weights=False)[0]


def recipe_of(name: str, expected: CentralView) -> Recipe:
    """Make a recipe whose only view is what a library's model expects."""
    size, resample = [*expected.size], expected.interpolation
    if expected.resize is None:
        crop = Entry("Resize", {"size": size, "resample": resample})
    else:
        settings = {"size": size, "resize": expected.resize, "resample": resample}
        crop = Entry("CenterCrop", settings)
    normalize = Entry("Normalize", {"mean": [*expected.mean], "std": [*expected.std]})
    views = {"global": ViewSection(ops=(crop, normalize))}
    return Recipe(path=name, stream=StreamSection(batch_size=1), views=views)
