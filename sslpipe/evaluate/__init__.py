"""Frozen protocols (k-NN, linear probe) and label-free monitors; labels are read here only."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from ..batch import Batch
from ..encoders.monitors import embedding_std, monitor, rankme
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
    """All accuracies of an encoder, and what they have in common."""

    protocol: str
    rows: tuple[Accuracy, ...]


def evaluate(
    encoder: nn.Module,
    train_batches: Iterable[Batch],
    test_batches: Iterable[Batch] | None,
    device: torch.device | str,
) -> Report:
    """k-NN and linear probe of frozen features; without a test set, leave-one-out and folds.

    Raises:
        SslpipeError: no batches, no labels, or too few samples of a class.
        ExtraError: scikit-learn is not installed.
    """
    train = extract(encoder, train_batches, device)
    if test_batches is None:
        return report(
            train, leave_one_out(train), cross_validated(train), "samples left out in turn"
        )
    test = extract(encoder, test_batches, device)
    return report(train, knn(train, test), linear(train, test), "a test set")


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
