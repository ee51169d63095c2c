"""The command of frozen features: any encoder, any shards, one file."""

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from .paths import in_a_folder
from .terminal import bar, console, stopped

AGAIN = "stopped; the same command goes on where it stopped"


class Precision(StrEnum):
    """Names the numbers that the forward pass calculates with."""

    fp32 = "fp32"
    bf16 = "bf16"


def features(
    subject: Annotated[
        str,
        typer.Argument(
            help="last.pt of a run, its folder, an exported folder, timm:NAME or torchvision:NAME."
        ),
    ],
    shards: Annotated[Path, typer.Argument(help="A packed folder; it need not have labels.")],
    out: Annotated[
        Path, typer.Option(help="The file to write, .safetensors.", callback=in_a_folder)
    ],
    untrained: Annotated[bool, typer.Option(help="Also the same encoder untrained.")] = True,
    pixels: Annotated[
        bool, typer.Option("--pixels", help="Also raw pixels; of text, counts of its tokens.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; default: cuda if there is one.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Samples at a time.", min=1)] = 256,
    precision: Annotated[
        Precision, typer.Option(help="Of the forward pass; bf16 is faster on GPUs.")
    ] = Precision.fp32,
) -> None:
    """Encode every sample once, and keep what the protocols of evaluation start from.

    Per sample: features, the class tokens of the last four blocks and the mean of the patches of a
    ViT, uid, label, and a number that is equal where the bytes are. A run that was stopped goes on
    by the same command, and a finished file is kept if weights, shards and settings are the same.

    Several GPUs: `torchrun --nproc-per-node 8 -m sslpipe features runs/a cifar --out a.safetensors`

    Example: `sslpipe features runs/cifar/last.pt cifar/train --out train.safetensors`
    """
    from ..device.handoff import find_device
    from ..evaluate.feature_cache import ExtractSettings, features_at
    from ..evaluate.subjects import open_subject
    from ..train.world import rank_device, start_world

    kind = str(find_device(device))
    with start_world(kind) as ranks, stopped(AGAIN), bar("samples") as update:
        settings = ExtractSettings(
            untrained=untrained,
            pixels=pixels,
            batch_size=batch_size,
            precision=precision.value,
            device=rank_device(ranks, kind),
        )
        chosen, shown = open_subject(subject), ExtractProgress(update)
        made = features_at(out, chosen, shards, settings, progress=shown)
    if ranks.rank == 0:
        rows, width = made["trained"].features.shape
        told = f"{out}: {', '.join(made)} features of {rows:,} samples, {width} wide; {shown.rate}"
        console.print(told, markup=False, highlight=False, soft_wrap=True)


class ExtractProgress:
    """The progress of this process, for its bar and its last line."""

    def __init__(self, update: Any) -> None:
        self._update, self._start, self._done = update, time.perf_counter(), 0

    def __call__(self, done: int, total: int) -> None:
        self._done = done
        self._update(completed=done, total=total, numbers=self.rate)

    @property
    def rate(self) -> str:
        """Seconds since the start and samples/s; or that there was nothing to do."""
        if not self._done:
            return "it was there, of the same weights, shards and settings"
        seconds = time.perf_counter() - self._start
        return f"{seconds:,.1f} s, {self._done / seconds:,.0f} samples/s"
