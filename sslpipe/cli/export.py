"""`sslpipe export`: what a checkpoint learnt, for other libraries."""

from pathlib import Path
from typing import Annotated

import typer

from .paths import exported_folder
from .terminal import notes, say_made

CHECKERS = {"onnx": "onnxruntime", "hf": "transformers"}  # who loads a format to compare it


def export(
    checkpoint: Annotated[Path, typer.Argument(help="A run's folder, or its last.pt.")],
    out: Annotated[Path, typer.Argument(help="The folder to write.", callback=exported_folder)],
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format", help="timm, hf, torchvision, onnx, by commas; default: all that can be."
        ),
    ] = None,
    branch: Annotated[
        str, typer.Option("--from", help="teacher, student, image; auto: what the paper evaluates.")
    ] = "auto",
    license_name: Annotated[
        str, typer.Option("--license", help="Of the weights, for the model card.")
    ] = "other",
    measures: Annotated[
        Path | None, typer.Option("--card-measures", help="What `eval --json` printed.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Put aside what is there and no export.")
    ] = False,
) -> None:
    """Write the encoder as a folder that timm, Hugging Face, torchvision and ONNX Runtime load.

    It holds safetensors, configs, preprocessing, recipe and model card, and needs nothing of ours.
    Encoders of text go to Hugging Face alone, with their output layer and tokenizer.

    Example: `sslpipe export runs/cifar exported/cifar --license apache-2.0`
    """
    from ..export import ExportSettings, export_checkpoint
    from ..export.model_card import read_measures

    settings = ExportSettings(
        formats=tuple(map(str.strip, ",".join(formats).split(","))) if formats else None,
        branch=branch,
        license_name=license_name,
        measures=read_measures(measures) if measures else (),
        overwrite=overwrite,
    )
    made = export_checkpoint(checkpoint, out, settings)
    for name, why in made.obstacles.items():
        notes.print(f"not as {name}: {why}", highlight=False, soft_wrap=True)
    for name in made.unchecked:
        notes.print(f"{name} is not checked: {CHECKERS[name]} is not installed", soft_wrap=True)
    written = ", ".join(made.formats) or "weights alone, for sslpipe train --from"
    say_made(f"wrote {out}: the {made.branch}, for {written}")
