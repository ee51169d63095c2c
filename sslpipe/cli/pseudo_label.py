"""The command that labels what has no label."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Device
from .paths import at_most, here, in_a_folder
from .terminal import console

Share = Annotated[
    float,
    typer.Option(
        help="Kept of each predicted class, the surest.", min=0.001, max=1, callback=at_most(1)
    ),
]


def pseudo_label(
    subject: Annotated[Path, typer.Argument(help="A run's folder, or its last.pt.")],
    shards: Annotated[
        Path, typer.Argument(help="A packed folder, labelled in part or not.", callback=here)
    ],
    out: Annotated[Path, typer.Option(help="The CSV file to write.", callback=in_a_folder)],
    known: Annotated[
        Path | None,
        typer.Option(help="Labelled shards that teach; default: SHARDS.", callback=here),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="A CSV file of labels of SHARDS that teach as well.")
    ] = None,
    share: Share = 0.5,
    device: Device = None,
) -> None:
    """Label the samples that have no label by those that have one, and write a file of labels.

    Logistic regression on frozen features; of each predicted class the surest are kept, each with
    its confidence. The shards stay as they are: `train --labels`, `stream.labels` of a recipe and
    `pack --labels` read the file, and so can you. Sets and labels that teach are opened before
    anything is encoded.

    Example: `sslpipe pseudo-label runs/a/last.pt shards/photos --labels mine.csv --out labels.csv`
    """
    from ..evaluate.labelling import label_shards
    from ..shards.labels_file import write_labels

    made = label_shards(
        subject, shards, out, known=known, labels=labels, share=share, device=device
    )
    write_labels(out, made.table)
    console.print(
        f"wrote {out}: {made.kept:,} of {made.predicted:,} samples, labelled by {made.known:,} "
        f"(temperature {made.temperature:.3g})",
        soft_wrap=True,
    )
