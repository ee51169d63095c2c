"""The command of frozen features: any encoder, any shards, one file."""

import os
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import SslpipeError
from ..process import launcher_ranks
from .options import (
    AnyShards,
    BatchSize,
    Device,
    FeatureFile,
    ForwardPrecision,
    Precision,
    Ray,
    RayWorkers,
    Subject,
    Untrained,
    WithPixels,
)  # fmt: skip
from .terminal import AGAIN, bar, console, stopped

if TYPE_CHECKING:  # they import torch
    from ..evaluate.feature_parts import ExtractSettings
    from ..evaluate.features import Features


def features(
    subject: Subject,
    shards: AnyShards,
    out: FeatureFile,
    untrained: Untrained = True,
    pixels: WithPixels = False,
    device: Device = None,
    batch_size: BatchSize = 256,
    precision: ForwardPrecision = Precision.fp32,
    workers: RayWorkers = None,
    ray: Ray = None,
) -> None:
    """Encode every sample once, and keep what the protocols of evaluation start from.

    Per sample: features, the class tokens of the last four blocks and the mean of the patches of a
    ViT, uid, label, and a number that is equal where the bytes are. A run that was stopped goes on
    by the same command, and a finished file is kept if weights, shards and settings are the same.

    Several GPUs: `torchrun --nproc-per-node 8 -m sslpipe features runs/a cifar --out a.safetensors`

    A cluster: `--ray auto`; all machines must see SUBJECT, SHARDS and the folder of OUT.

    Example: `sslpipe features runs/cifar/last.pt cifar/train --out train.safetensors`
    """
    from ..evaluate.feature_parts import ExtractSettings

    settings = ExtractSettings(
        untrained=untrained,
        pixels=pixels,
        batch_size=batch_size,
        precision=precision.value,
        device=device,
    )
    check_workers(workers, ray)
    with stopped(AGAIN), own_bar() as update:
        shown = ExtractProgress(update)
        if ray is None:
            made = on_ranks(out, subject, shards, settings, shown)
        else:
            made = on_ray(out, subject, shards, settings, shown, workers, ray)
    if made:
        rows, width = made["trained"].features.shape
        told = f"{out}: {', '.join(made)} features of {rows:,} samples, {width} wide; {shown.rate}"
        console.print(told, highlight=False, soft_wrap=True)


def own_bar() -> AbstractContextManager[Any]:
    """The bar of rank 0 for its share: those of several ranks would write over each other."""
    return nullcontext(unseen) if launcher_ranks(os.environ).rank else bar("samples")


def unseen(**fields: Any) -> None:
    """Take the numbers of a bar that is not shown."""


def check_workers(workers: int | None, ray: str | None) -> None:
    """Raise a SslpipeError for workers without a cluster to run in."""
    if ray is None and workers is not None:
        raise SslpipeError(
            f"--workers {workers}: is for --ray; without it, torchrun starts several processes"
        )


def on_ranks(
    out: Path, subject: str, shards: Path, settings: "ExtractSettings", shown: "ExtractProgress"
) -> dict[str, "Features"]:
    """Extract here, or on the processes of torchrun; empty on all of these but rank 0."""
    from ..device.handoff import find_device
    from ..evaluate.feature_cache import features_at
    from ..evaluate.subjects import open_subject
    from ..train.world import rank_device, start_world

    kind = str(find_device(settings.device))
    with start_world(kind) as ranks:
        own = replace(settings, device=rank_device(ranks, kind))
        made = features_at(out, open_subject(subject, shards), shards, own, progress=shown)
        return {} if ranks.rank else made


def on_ray(
    out: Path,
    subject: str,
    shards: Path,
    settings: "ExtractSettings",
    shown: "ExtractProgress",
    workers: int | None,
    address: str,
) -> dict[str, "Features"]:
    """Extract by the actors of a cluster, on its GPUs if it has some."""
    from ..evaluate.feature_pool import features_in_pool
    from ..shards.make.pools import cluster_gpus, open_ray

    kind = settings.device or ("cuda" if cluster_gpus(address, workers) else "cpu")
    with open_ray(workers, address, gpus=int(kind == "cuda")) as pool:
        own = replace(settings, device=kind)
        return features_in_pool(out, subject, shards, own, pool, progress=shown)


class ExtractProgress:
    """The progress of this process, for its bar and its last line."""

    def __init__(self, update: Any) -> None:
        self._update, self._start = update, time.perf_counter()
        self._done: int | None = None  # nothing was to be made

    def __call__(self, done: int, total: int) -> None:
        self._done = done
        self._update(completed=done, total=total, numbers=self.rate)

    @property
    def rate(self) -> str:
        """Seconds since the start and samples/s here; or that others made it, or it was there."""
        if self._done is None:
            return "it was there, of the same weights, shards and settings"
        seconds = time.perf_counter() - self._start
        speed = f"{self._done / seconds:,.0f} samples/s" if self._done else "by other processes"
        return f"{seconds:,.1f} s, {speed}"
