"""Frozen protocols (k-NN, linear probe) and label-free monitors; labels are read here only."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import nn

from ..batch import Batch
from ..encoders.monitors import embedding_std, monitor, rankme
from .classes import join
from .features import Features, extract
from .knn import KNN, knn, leave_one_out
from .linear import Linear, cross_validated, linear

__all__ = [
    "KNN",
    "Accuracy",
    "Features",
    "Linear",
    "Report",
    "cross_validated",
    "embedding_std",
    "evaluate",
    "extract",
    "knn",
    "leave_one_out",
    "linear",
    "monitor",
    "rankme",
]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """One accuracy in [0, 1]: of what, and how it was measured."""

    name: str
    value: float
    protocol: str


@dataclass(frozen=True, slots=True)
class Report:
    """All accuracies of an encoder, and what they have in common.

    `note`: the classes that only the training set or only the test set has; empty if none.
    """

    protocol: str
    rows: tuple[Accuracy, ...]
    note: str = ""


def evaluate(
    encoder: nn.Module,
    train_batches: Iterable[Batch],
    test_batches: Iterable[Batch] | None,
    device: torch.device | str,
    *,
    strict: bool = False,
) -> Report:
    """k-NN and linear probe of frozen features; without a test set, leave-one-out and folds.

    Classes are matched by the names in the manifests. Test samples of a class that the training
    set lacks are left out, and the report says so; `strict` refuses sets of different classes.

    Raises:
        SslpipeError: no batches, no labels, too few samples of a class, or no class name is in
            both sets; `strict`: a name is in one of them only.
        ExtraError: scikit-learn is not installed.
    """
    train = extract(encoder, train_batches, device)
    if test_batches is None:
        return report(
            train, leave_one_out(train), cross_validated(train), "samples left out in turn"
        )
    test = extract(encoder, test_batches, device)
    joined = join(train.labelled(), test.labelled(), strict=strict)
    test = replace(test.labelled(), labels=joined.labels, classes=joined.classes)
    made = report(train, knn(train, test), linear(train, test), "a test set")
    return replace(made, note=joined.said)


def report(train: Features, neighbours: KNN, probe: Linear, tested: str) -> Report:
    """Put the numbers of the two protocols into rows."""
    how = (
        f"weighted k-NN (k={neighbours.k}, T={neighbours.temperature:g}, l2-normalised), "
        f"{neighbours.queries} queries, bank of {neighbours.bank}"
    )
    rows = [Accuracy("knn top-1", neighbours.top1, how)]
    if neighbours.top5 is not None:
        rows.append(Accuracy("knn top-5", neighbours.top5, how))
    rows.append(Accuracy("linear top-1", probe.top1, probe.protocol))
    width = train.features.shape[1]
    common = f"frozen {width}-d backbone features, {neighbours.classes} classes, tested on {tested}"
    return Report(common, tuple(rows))
