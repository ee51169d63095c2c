"""Features are extracted once: shared by ranks, resumed after a kill, cached by their origin.

    F.safetensors.parts/0000000.safetensors ...    a few batches each, written while they are made
    F.safetensors                                  all of them; then the parts go

Ranks take whole batches of the one sequence, since the kernels of a batch round by its size: the
file is the same to the byte for any number of ranks and after any kill. Ranks see one file system.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..batch import Batch
from ..device.handoff import find_device
from ..errors import SslpipeError, StateError
from ..pipeline import Pipeline
from ..process import Ranks, process_ranks
from ..shards.manifest import open_manifest
from ..stream.open_source import kept
from .classes import class_names
from .encoding import baseline_of
from .feature_file import FeatureOrigin, read_features, read_origin, write_features
from .features import Features, central, central_batches, contents_of, extract_all, joined
from .subjects import Subject

PART = 8192  # samples of a part, about: seconds on a GPU, a minute on a CPU
PRECISIONS: Mapping[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class ExtractSettings:
    """What is extracted, and how; `device` decides rounding only."""

    untrained: bool = True  # also the encoder as it was before training, if that is known
    pixels: bool = False  # also the baseline: raw pixels, counts of tokens, a spectrogram
    batch_size: int = 256
    precision: Literal["fp32", "bf16"] = "fp32"
    device: torch.device | str | None = None  # None: CUDA if there is one


@dataclass(frozen=True, slots=True)
class Work:
    """The parts of an extraction, and where they lie."""

    folder: Path
    origin: FeatureOrigin
    samples: int
    part: int  # samples of a part, whole batches

    def path(self, number: int) -> Path:
        """Name the file of part `number`."""
        return self.folder / f"{number:07d}.safetensors"

    def share(self, ranks: Ranks) -> range:
        """Give a rank its parts: as many to each, and those of a rank behind each other."""
        count = -(-self.samples // self.part)
        first, last = (count * r // ranks.size for r in (ranks.rank, ranks.rank + 1))
        return range(first, last)

    def size(self, number: int) -> int:
        """How many samples a part has."""
        return min(self.part, self.samples - number * self.part)

    def missing(self, numbers: range) -> list[int]:
        """Which of some parts are not there, or were made of something else."""
        return [number for number in numbers if not is_made_of(self.path(number), self.origin)]


def cached_features(
    subject: Subject,
    shards: str | Path,
    cache: Path,
    settings: ExtractSettings = ExtractSettings(),
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Features]:
    """Read features from a folder, or extract and write them there; `features_at` a path.

    The file is named by all that features depend on, so one of other weights is never taken.

    Raises:
        SslpipeError: as `features_at`.
    """
    origin = origin_of(subject, shards, settings)
    name = hashlib.blake2b(repr(origin).encode(), digest_size=12).hexdigest()
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"{name}.safetensors"
    return features_at(path, subject, shards, settings, progress=progress)


def features_at(
    path: Path,
    subject: Subject,
    shards: str | Path,
    settings: ExtractSettings = ExtractSettings(),
    *,
    rank: int | None = None,
    world_size: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Features]:
    """Give "trained" and, as set, "untrained" and a baseline; of a file that is made if need be.

    A file of other weights, shards or settings is replaced. Parts that are there are not made
    again. Of several ranks each extracts its share; rank 0 writes, and all read. Ranks that are
    given and no process group must have rank 0 called last. `progress` hears how many of this
    rank's samples are done, of how many.

    Raises:
        SslpipeError: the file is there and holds no features, or they are not finite.
        ShardError: what is wrong with the shards.
        StateError: a part of another rank is missing.
        ExtraError: safetensors is not installed.
    """
    ranks = process_ranks(rank, world_size)
    origin = origin_of(subject, shards, settings)
    check_ours(path)
    if not is_made_of(path, origin):
        work = extract_share(path, origin, subject, shards, settings, ranks, progress)
        wait_for_ranks()
        if ranks.rank == 0:
            join_parts(path, work)
        wait_for_ranks()
        if ranks.rank and not dist.is_initialized():
            return {}
    return read_features(path)


def origin_of(subject: Subject, shards: str | Path, settings: ExtractSettings) -> FeatureOrigin:
    """Say what the features will be a function of.

    Raises:
        ShardError: what is wrong with the shards.
    """
    untrained = settings.untrained and subject.untrained is not None
    baseline, _ = baseline_of(subject.encoder, subject.recipe.modality)
    names = {"trained": True, "untrained": untrained, baseline: settings.pixels}
    return FeatureOrigin(
        weights=subject.digest,
        shards=open_manifest(shards).fingerprint,
        transform=central(subject.recipe, batch_size=settings.batch_size).data_fingerprint,
        precision=settings.precision,
        encoders=tuple(name for name, wanted in names.items() if wanted),
        version=version("sslpipe"),
    )


def check_ours(path: Path) -> None:
    """Refuse to replace a file that is none of ours.

    Raises:
        SslpipeError: it holds no features.
    """
    if not path.exists():
        return
    try:
        read_origin(path)
    except StateError as error:
        raise SslpipeError(
            f"{path}: is there and holds no features of this version; remove it, or write elsewhere"
        ) from error


def is_made_of(path: Path, origin: FeatureOrigin) -> bool:
    """Tell whether a file is there, whole, and made of what is wanted."""
    try:
        return path.exists() and read_origin(path) == origin
    except StateError:
        return False


def encoders_of(subject: Subject, origin: FeatureOrigin) -> dict[str, nn.Module]:
    """Make the encoders that are wanted."""
    name, baseline = baseline_of(subject.encoder, subject.recipe.modality)
    makers: dict[str, Callable[[], nn.Module]] = {
        "trained": lambda: subject.encoder,
        name: lambda: baseline,
    }
    if subject.untrained is not None:
        makers["untrained"] = subject.untrained
    return {name: makers[name]() for name in origin.encoders}


def extract_share(
    path: Path,
    origin: FeatureOrigin,
    subject: Subject,
    shards: str | Path,
    settings: ExtractSettings,
    ranks: Ranks,
    progress: Callable[[int, int], None],
) -> Work:
    """Extract the parts of a rank that are not there."""
    device = find_device(settings.device)
    size = settings.batch_size
    folder = path.with_name(path.name + ".parts")
    folder.mkdir(exist_ok=True)
    with central_batches(subject.recipe, shards=shards, device=device, batch_size=size) as pipe:
        work = Work(folder, origin, kept(open_manifest(shards)), max(1, PART // size) * size)
        missing = work.missing(work.share(ranks))
        encoders = encoders_of(subject, origin) if missing else {}
        total, done = sum(map(work.size, missing)), 0
        contents, classes = contents_of(pipe), class_names(pipe)

        def count(samples: int) -> None:
            nonlocal done
            done += samples
            progress(done, total)

        for number in missing:
            found = extract_all(
                encoders,
                section(pipe, number * work.part // size, work.part // size),
                device,
                autocast=PRECISIONS[settings.precision],
                classes=classes,
                contents=contents,
                progress=count,
            )
            write_features(work.path(number), found, origin)
    return work


def section(pipeline: Pipeline, first: int, count: int) -> Iterator[Batch]:
    """Give some batches of the one epoch."""
    if pipeline.step != first:
        pipeline.load_state_dict({**pipeline.state_dict(), "step": first})
    return islice(pipeline, count)


def join_parts(path: Path, work: Work) -> None:
    """Make one file of all parts, and remove them.

    Raises:
        StateError: one is missing, so another rank failed.
    """
    everything = work.share(Ranks())
    missing = work.missing(everything)
    if missing:
        raise StateError(
            f"{work.folder}: part {missing[0]} is missing ({len(missing)} of {len(everything)}); "
            "run the same command again, on ranks that see one file system"
        )
    parts = [read_features(work.path(number)) for number in everything]
    found = {name: together([part[name] for part in parts]) for name in work.origin.encoders}
    write_features(path, found, work.origin)
    shutil.rmtree(work.folder)


def together(parts: list[Features]) -> Features:
    """Put the features of several parts behind each other."""

    def column(of: Callable[[Features], Tensor]) -> Tensor:
        return joined([of(part) for part in parts])

    return replace(
        parts[0],
        features=column(lambda f: f.features),
        labels=column(lambda f: f.labels),
        uids=column(lambda f: f.uids),
        contents=column(lambda f: f.contents),
        blocks=column(lambda f: f.blocks),
        patches=column(lambda f: f.patches),
    )


def wait_for_ranks() -> None:
    """Wait until all ranks of the process group are here, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
