"""The parts of a file of features: a few batches each, made by whoever gets to it.

    F.safetensors.parts/0000000.safetensors ...    written while they are made
    F.safetensors                                  all of them; then the parts go

A part is whole batches of the one sequence, since the kernels of a batch round by its size: who
makes it, and in which order, does not show in the file.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ..batch import Batch
from ..device.handoff import find_device
from ..errors import StateError
from ..pipeline import Pipeline
from ..process import Ranks
from ..shards.manifest import open_manifest
from ..stream.open_source import kept
from .classes import class_names
from .encoding import baseline_of
from .feature_file import FeatureOrigin, read_features, read_origin, write_features
from .features import Features, central_batches, concatenated, contents_of, extract_all
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


DEFAULTS = ExtractSettings()


@dataclass(frozen=True, slots=True)
class PartsWork:
    """The parts of an extraction, and where they lie."""

    folder: Path
    origin: FeatureOrigin
    samples: int
    part: int  # samples of a part, whole batches

    def path(self, number: int) -> Path:
        """The file of a part, whether it is there or not."""
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


def parts_work(
    path: Path, origin: FeatureOrigin, shards: str | Path, settings: ExtractSettings
) -> PartsWork:
    """Make the folder of the parts of a file, and say which parts there are."""
    folder = path.with_name(path.name + ".parts")
    folder.mkdir(exist_ok=True)
    size = settings.batch_size
    return PartsWork(folder, origin, kept(open_manifest(shards)), max(1, PART // size) * size)


@dataclass(frozen=True, slots=True)
class Extraction:
    """A subject's encoders and the central views of a set, from which any part can be made."""

    work: PartsWork
    pipe: Pipeline
    encoders: Mapping[str, nn.Module]
    settings: ExtractSettings

    def make(self, number: int, progress: Callable[[int], None] = lambda samples: None) -> None:
        """Extract a part and write it whole; `progress` hears of each batch how many it has."""
        size = self.settings.batch_size
        found = extract_all(
            self.encoders,
            section(self.pipe, number * self.work.part // size, self.work.part // size),
            find_device(self.settings.device),
            autocast=PRECISIONS[self.settings.precision],
            classes=class_names(self.pipe),
            contents=contents_of(self.pipe),
            progress=progress,
        )
        write_features(self.work.path(number), found, self.work.origin)


def open_extraction(
    work: PartsWork, subject: Subject, shards: str | Path, settings: ExtractSettings
) -> Extraction:
    """Make the encoders, and open the central views of a set, as a subject is shown them."""
    encoders = encoders_of(subject, work.origin)
    device, size = find_device(settings.device), settings.batch_size
    pipe = central_batches(subject.recipe, shards=shards, device=device, batch_size=size)
    return Extraction(work, pipe, encoders, settings)


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


def section(pipeline: Pipeline, first: int, count: int) -> Iterator[Batch]:
    """Give some batches of the one epoch."""
    if pipeline.step != first:
        pipeline.load_state_dict({**pipeline.state_dict(), "step": first})
    return islice(pipeline, count)


def join_parts(path: Path, work: PartsWork) -> None:
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
        return concatenated([of(part) for part in parts])

    return replace(
        parts[0],
        features=column(lambda f: f.features),
        labels=column(lambda f: f.labels),
        uids=column(lambda f: f.uids),
        contents=column(lambda f: f.contents),
        blocks=column(lambda f: f.blocks),
        patches=column(lambda f: f.patches),
    )


def is_made_of(path: Path, origin: FeatureOrigin) -> bool:
    """Tell whether a file is there, whole, and made of what is wanted."""
    try:
        return path.exists() and read_origin(path) == origin
    except StateError:
        return False
