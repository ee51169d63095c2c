"""What was run on what: weights, recipe, data, versions, and the command that does it again."""

import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..evaluate.results import Evaluation
from ..recipe.sections import recipe_text
from ..shards.manifest import read_manifest

PACKAGES = ("sslpipe", "torch", "timm", "torchvision", "scikit-learn", "kornia", "numpy")


@dataclass(frozen=True, slots=True)
class SubjectFacts:
    """One checkpoint: what it is called, its weights, and the recipe that made it."""

    name: str
    digest: str
    width: int
    recipe: str  # YAML
    fingerprint: str  # of the recipe


@dataclass(frozen=True, slots=True)
class DataFacts:
    """One shard set, and how many of its samples were evaluated."""

    role: str
    place: str
    name: str
    fingerprint: str
    samples: int
    classes: int


@dataclass(frozen=True, slots=True)
class Facts:
    """All that it takes to do the same again."""

    subjects: tuple[SubjectFacts, ...]
    data: tuple[DataFacts, ...]
    versions: tuple[tuple[str, str], ...]
    commands: tuple[str, ...]


def facts(evaluations: Sequence[Evaluation]) -> Facts:
    """Collect them; no date and no name of a machine, so that the same input is the same page."""
    first = evaluations[0]
    data = [data_of("evaluated on", first.shards, len(first.features["trained"].uids))]
    if first.test is not None:
        data.append(data_of("tested on", first.test, len(first.tested["trained"].uids)))
    return Facts(
        tuple(map(subject_of, evaluations)),
        tuple(data),
        (
            ("Python", platform.python_version()),
            *((p, v) for p in PACKAGES if (v := version_of(p))),
        ),
        tuple(map(command_of, evaluations)),
    )


def subject_of(evaluation: Evaluation) -> SubjectFacts:
    """Describe the encoder of an evaluation: name, weights, width of its features, recipe."""
    subject = evaluation.subject
    return SubjectFacts(
        subject.name,
        subject.digest,
        evaluation.features["trained"].features.shape[1],
        recipe_text(subject.recipe),
        subject.recipe.fingerprint,
    )


def data_of(role: str, shards: Path, samples: int) -> DataFacts:
    """Describe a shard set in its role, of which `samples` were evaluated.

    Raises:
        ShardError: there is no manifest.
    """
    manifest = read_manifest(shards)
    found = manifest.name, manifest.fingerprint, samples, len(manifest.classes)
    return DataFacts(role, str(shards), *found)


def version_of(package: str) -> str:
    """The version of an installed package; empty: it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def command_of(evaluation: Evaluation) -> str:
    """The command line that evaluates this checkpoint again."""
    words = ["sslpipe", "eval", evaluation.subject.name, str(evaluation.shards)]
    if evaluation.test is not None:
        words += ["--test", str(evaluation.test)]
    return shlex.join([*words, "--report", "report"])
