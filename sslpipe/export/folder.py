"""`sslpipe export`: a checkpoint's encoder as a folder that needs nothing of ours.

Always: model.safetensors under the library's own names, preprocessing.json, recipe.yaml, README.md.
By format: config.json (timm and Hugging Face), torchvision.safetensors, model.onnx; of clips
a folder `transformers`, whose names of weights are others. Every format is loaded and compared with
the encoder before the folder gets its name.
"""

import itertools
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..encoders.libraries import library
from ..encoders.tokens import TokenEncoder
from ..encoders.wav2vec2 import Wav2Vec2Encoder
from ..errors import SslpipeError
from ..shards.side_files import disk_fault
from .checks import check_in_runtime, check_in_timm, check_in_torchvision
from .clip_weights import FOLDER, is_of_clips, write_transformers
from .formats import blueprint_of, chosen_formats, library_module, obstacles
from .model_card import ExportSettings, card
from .preprocessing import central_view, clip_frames
from .text_folder import write_text
from .trained import Trained, read_trained
from .wave_folder import write_waves
from .writers import is_export, metadata, write_config, write_json, write_onnx, write_tensors


@dataclass(frozen=True, slots=True)
class Exported:
    """Says what was written, and which formats could not be, or were not checked."""

    folder: Path
    branch: str
    formats: tuple[str, ...]
    obstacles: Mapping[str, str]  # why formats are not there that nobody left out
    unchecked: tuple[str, ...]  # formats that no library was there to load


def export_checkpoint(
    checkpoint: Path, out: Path, settings: ExportSettings | None = None
) -> Exported:
    """Write the encoder of a checkpoint, or of the last one in a run's folder, to the folder `out`.

    It is whole or not there. An export of ours that is there is replaced.

    Raises:
        StateError: the checkpoint is missing or damaged.
        ExtraError: a package is missing that writes safetensors, or a format that was asked for.
        SslpipeError: `out` is something else, or a branch or a format is not to be had.
        OSError: the disk is full; it names `out`.
    """
    settings = settings or ExportSettings()
    library("safetensors")
    check_place(out, overwrite=settings.overwrite)
    trained = read_trained(checkpoint, settings.branch)
    formats = chosen_formats(trained.encoder, settings.formats)
    place = out.resolve()
    part = place.with_name(f".{place.name}.part-{os.getpid()}")
    part.mkdir()
    try:
        unchecked = writer_of(trained)(part, place.name, trained, formats, settings)
        put_in_place(part, place)
    except Exception as error:
        if fault := disk_fault(error):
            raise OSError(fault.errno, fault.strerror, str(out)) from error
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    told = settings.formats is None and writer_of(trained) is write_all
    left_out = obstacles(trained.encoder) if told else {}
    return Exported(out, trained.branch, formats, left_out, unchecked)


def writer_of(trained: Trained) -> Callable[..., tuple[str, ...]]:
    """What writes the files of an encoder: of text, of waveforms, or of images."""
    if isinstance(trained.encoder, TokenEncoder):
        return write_text
    return write_waves if isinstance(trained.encoder, Wav2Vec2Encoder) else write_all


def check_place(out: Path, *, overwrite: bool) -> None:
    """Make sure, before any work, that nothing of the user's is replaced.

    Raises:
        SslpipeError: there is something else than an export of ours.
    """
    if not out.resolve().parent.is_dir():
        raise SslpipeError(f"{out}: there is no folder {out.parent}; make it, or write elsewhere")
    if not out.resolve().name:
        raise SslpipeError(f"{out}: is the root of all folders; name one in it")
    if out.exists() and not out.is_dir():
        raise SslpipeError(f"{out}: is a file; an export is a folder, name one")
    if out.is_dir() and any(out.iterdir()) and not overwrite and not is_export(out):
        raise SslpipeError(
            f"{out}: is a folder with other things in it; name another one, or put it aside with "
            "--overwrite"
        )


def write_all(
    part: Path, name: str, trained: Trained, formats: Sequence[str], settings: ExportSettings
) -> tuple[str, ...]:
    """Write all files of the model `name` to `part`; give the formats that nothing could check.

    Raises:
        SslpipeError: a library gives other features than the encoder.
    """
    state, said = library_module(trained.encoder).state_dict(), metadata(trained)
    write_tensors(part / "model.safetensors", state, said)
    view = {**clip_frames(trained.recipe), **asdict(central_view(trained.recipe))}
    write_json(part / "preprocessing.json", view)
    (part / "recipe.yaml").write_text(trained.recipe_yaml, encoding="utf-8")
    blueprint, unchecked = blueprint_of(trained.encoder), []
    is_clips = is_of_clips(trained.encoder)
    if is_clips and "hf" in formats and not write_transformers(part / FOLDER, trained):
        unchecked.append("hf")
    if blueprint is not None and not is_clips and {"timm", "hf"} & {*formats}:
        write_config(part / "config.json", trained, blueprint, settings.license_name)
        check_in_timm(part, trained)
    if blueprint is not None and "torchvision" in formats:
        write_tensors(part / "torchvision.safetensors", state, said)
        check_in_torchvision(part / "torchvision.safetensors", trained, blueprint)
    if "onnx" in formats:
        write_onnx(part / "model.onnx", trained)
        if not check_in_runtime(part / "model.onnx", trained):
            unchecked.append("onnx")
    text = card(
        trained,
        name=name,
        formats=formats,
        license_name=settings.license_name,
        measures=settings.measures,
    )
    (part / "README.md").write_text(text, encoding="utf-8")
    return tuple(unchecked)


def put_in_place(part: Path, out: Path) -> None:
    """Rename `part`; an export that was there is gone then, anything else has another name."""
    if not out.is_dir():
        part.rename(out)
        return
    names = (f"{out.name}.before{number or ''}" for number in itertools.count())
    before = next(place for place in map(out.with_name, names) if not place.exists())
    out.rename(before)
    try:
        part.rename(out)
    except OSError:
        before.rename(out)
        raise
    if is_export(before) or not any(before.iterdir()):
        shutil.rmtree(before)
