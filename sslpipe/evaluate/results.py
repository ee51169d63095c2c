"""What an evaluation found: numbers, each with the protocol that made it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .features import Features
from .subjects import Subject


@dataclass(frozen=True, slots=True)
class Measure:
    """One number, and how it was found.

    `value` is a share in [0, 1] unless the protocol says otherwise. `interval`: half the width of
    its 95 % interval; None: there is one draw only. `chance`: what guessing gives; None: it has no
    such thing.
    """

    name: str  # "knn top-1", the same for all encoders
    value: float
    protocol: str
    interval: float | None = None
    chance: float | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All that was measured of one subject.

    The Mappings have an entry for each of the encoders beside each other: "trained", "untrained",
    and one of encoding.BASELINES, of which all but the first may be missing.
    """

    subject: Subject
    shards: Path
    test: Path | None
    features: Mapping[str, Features]  # of the samples of `shards`
    measures: Mapping[str, tuple[Measure, ...]]
    tested: Mapping[str, Features] = field(default_factory=dict)  # of `test`, in numbers of shards
    note: str = ""  # the classes that only one of the two sets has
    skipped: Mapping[str, str] = field(
        default_factory=dict
    )  # protocol -> why the set is not for it
