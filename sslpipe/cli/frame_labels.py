"""The command that labels the frames of recordings, for HuBERT."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .paths import MANY, SEED, at_most, here, in_a_folder
from .terminal import bar, console, stopped

Clusters = Annotated[
    int, typer.Option(help="Of k-means; HuBERT: 100, then 500.", min=2, callback=at_most(MANY))
]
Run = Annotated[
    str | None, typer.Option("--of", help="A run whose states are clustered; else MFCC.")
]
Layer = Annotated[
    int | None, typer.Option(help="Of the run's encoder, from 1.", min=1, callback=at_most(MANY))
]
Rate = Annotated[
    int, typer.Option(help="Of MFCC: samples per second.", min=1_000, callback=at_most(MANY))
]
Shift = Annotated[
    int, typer.Option(help="Of MFCC: samples from label to label.", min=1, callback=at_most(MANY))
]
Window = Annotated[
    int | None,
    typer.Option(
        help="Of MFCC: samples of a frame; default: 25 ms.", min=2, callback=at_most(MANY)
    ),
]
Fit = Annotated[
    int, typer.Option(help="Frames that k-means sees, at most.", min=2, callback=at_most(MANY))
]


def frame_labels(
    shards: Annotated[Path, typer.Argument(help="A packed folder of sound.", callback=here)],
    out: Annotated[Path, typer.Option(help="The file to write, .npz.", callback=in_a_folder)],
    clusters: Clusters = 100,
    of: Run = None,
    layer: Layer = None,
    rate: Rate = 16_000,
    shift: Shift = 320,
    window: Window = None,
    fit: Fit = 1_000_000,
    seed: Annotated[int, typer.Option(help="Of k-means.", min=0, callback=at_most(SEED))] = 0,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; default: cuda if there is one.")
    ] = None,
) -> None:
    """Cluster the frames of all recordings, and keep the cluster of each: what HuBERT guesses.

    First clusters of MFCC; then, of the run that learned to guess them, of a layer's states. The
    shards stay as they are: a recipe names the file, `task: {frame_labels: {file: OUT}}`.

    Example: `sslpipe frame-labels shards/speech --out shards/speech/mfcc100.npz --clusters 100`

    Example: `sslpipe frame-labels shards/speech --out layer6.npz --of runs/a --layer 6`
    """
    from ..evaluate.frame_clusters import CepstraSettings, ClusterSettings, frame_labels
    from ..modalities.audio.frame_labels import write_frame_labels

    cepstra = CepstraSettings(rate=rate, shift=shift, window=window)
    settings = ClusterSettings(classes=clusters, fit=fit, seed=seed, device=device)
    with stopped("stopped; nothing was written"), bar("recordings") as update:

        def progress(done: int, total: int) -> None:
            update(completed=done, total=total)

        made = frame_labels(shards, of, layer, cepstra, settings, progress=progress)
    write_frame_labels(out, made)
    console.print(told(out, made), highlight=False, soft_wrap=True)


def told(out: Path, made: Any) -> str:
    """How many frames there are, and how evenly they fall into clusters."""
    import numpy as np

    counts = np.bincount(made.labels, minlength=made.grid.classes)
    shares = counts[counts > 0] / counts.sum()
    used = float(np.exp(-(shares * np.log(shares)).sum()))
    return (
        f"wrote {out}: {len(made.labels):,} frames of {len(made.uids):,} recordings, a label every "
        f"{made.grid.shift} samples at {made.grid.rate:,} Hz; {made.grid.classes} clusters, used "
        f"as {used:.1f} equal ones, the largest {shares.max():.1%}"
    )
