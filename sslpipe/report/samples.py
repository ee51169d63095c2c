"""The samples that a report looks at: the same for every checkpoint, in the same order."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import SslpipeError
from ..evaluate import Features
from ..evaluate.results import Evaluation
from ..recipe.names import suggest
from .maps import Projection, stratified
from .neighbours import Nearest, among, left_out

I64 = npt.NDArray[np.int64]
MAPS = ("pca", "tsne")


@dataclass(frozen=True, slots=True)
class ReportSettings:
    """What a report shows of what was measured; nothing here changes a number of a protocol.

    `points` of the map, and `looked_at` samples of the confusions, are drawn keyed by (seed, uid),
    each label with its share. `previous`: the embedding.csv of an earlier report of the same run,
    which the map goes on from. `picture_bytes` of the map: beyond them pictures become smaller.

    Raises:
        SslpipeError: there is no such projection.
    """

    projection: Projection = "pca"
    points: int = 5_000
    looked_at: int = 10_000
    queries: int = 12
    neighbours: int = 8
    classes: int = 12  # in the table of confusions
    patch_pictures: int = 6
    previous: Path | None = None
    seed: int = 0
    picture_bytes: int = 6_000_000

    def __post_init__(self) -> None:
        if self.projection not in MAPS:
            raise SslpipeError(
                f"report: unknown map {self.projection!r}; {suggest(self.projection, MAPS)}"
            )


@dataclass(frozen=True, slots=True)
class Look:
    """What one checkpoint says of the samples that are looked at, in an order of their uids.

    `bank`: what the neighbours are rows of. `asked`: the samples; those of the test set where
    there is one, else of the bank, each of which is then left out in turn.
    """

    evaluation: Evaluation
    bank: Features
    asked: Features
    nearest: Nearest


def looks(evaluations: Sequence[Evaluation], settings: ReportSettings) -> list[Look]:
    """Look at the same samples with the encoder of each checkpoint.

    Raises:
        SslpipeError: no evaluations, one without features, or of other samples than the first.
    """
    if not evaluations:
        raise SslpipeError("report: there is no evaluation; give at least one checkpoint")
    first = asked_of(evaluations[0], "trained")
    rows = stratified(first, settings.looked_at, seed=settings.seed)
    uids = first.uids[torch.from_numpy(rows)]
    return [look_at(evaluation, uids) for evaluation in evaluations]


def asked_of(evaluation: Evaluation, encoder: str) -> Features:
    """The samples that are looked at: of the test set, if there is one; labelled, if some are.

    Raises:
        SslpipeError: the evaluation has no features of this encoder.
    """
    found = (evaluation.tested if evaluation.test is not None else evaluation.features).get(encoder)
    if found is None:
        raise SslpipeError(
            f"report: {evaluation.subject.name} has no features of the {encoder} encoder; "
            "evaluate it first"
        )
    return found.labelled() if bool((found.labels >= 0).any()) else found


def look_at(evaluation: Evaluation, uids: Tensor, encoder: str = "trained") -> Look:
    """Find the samples, and their neighbours, with one of the encoders.

    Raises:
        SslpipeError: the evaluation lacks one of them.
    """
    bank, asked = evaluation.features[encoder], asked_of(evaluation, encoder)
    rows = rows_of_uids(asked, uids, evaluation.subject.name)
    chosen = asked.at(rows)
    if evaluation.test is not None:
        return Look(evaluation, bank, chosen, among(bank, chosen))
    own = rows_of_uids(bank, uids, evaluation.subject.name)
    return Look(evaluation, bank, chosen, left_out(bank, own))


def rows_of_uids(features: Features, uids: Tensor, name: str) -> Tensor:
    """Find the row that each uid has among the features: int64, in the order of `uids`.

    Raises:
        SslpipeError: one is not there.
    """
    ordered, order = features.uids.sort()
    found = torch.searchsorted(ordered, uids).clamp(max=len(ordered) - 1)
    missing = uids[ordered[found] != uids]
    if len(missing):
        raise SslpipeError(
            f"report: {name} was evaluated on other samples than the first checkpoint (uid "
            f"{int(missing[0])} is one of {len(missing)} that it lacks); evaluate all on the same "
            "shards"
        )
    return order[found]


@dataclass(frozen=True, slots=True)
class EqualSamples:
    """Samples of equal bytes: (whether of the test set, uid, label number) of each."""

    members: tuple[tuple[bool, int, int], ...]

    @property
    def labels_differ(self) -> bool:
        """Whether one of them has another label: at least one is wrong."""
        return len({label for _, _, label in self.members if label >= 0}) > 1

    @property
    def crosses(self) -> bool:
        """Whether the test set has what the training set has."""
        return len({of_test for of_test, _, _ in self.members}) > 1


def equal_samples(features: Features, tested: Features | None) -> list[EqualSamples] | None:
    """Groups of exact duplicates, the gravest first; None: nobody knows what the bytes are."""
    if not len(features.contents):
        return None
    parts = [(False, features), *([(True, tested)] if tested is not None else [])]
    columns = [(of_test, p) for of_test, p in parts if len(p.contents)]
    found: dict[int, list[tuple[bool, int, int]]] = {}
    for of_test, part in columns:
        rows = zip(
            part.contents.long().tolist(), part.uids.tolist(), part.labels.tolist(), strict=True
        )
        for content, uid, label in rows:
            found.setdefault(content, []).append((of_test, uid, label))
    groups = [EqualSamples(tuple(sorted(g))) for g in found.values() if len(g) > 1]
    return sorted(groups, key=lambda g: (-g.labels_differ, -g.crosses, -len(g.members), g.members))
