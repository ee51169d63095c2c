"""Labels of two sets joined by the names of their classes, never by number.

A manifest counts the classes that it has: label 0 is `a` of folders a to d, and `b` of b to d.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..batch import Batch
from ..errors import SslpipeError
from ..pipeline import Pipeline
from ..stream.packed import Packed

Names = tuple[str, ...]  # of labels 0, 1, ...; empty: the labels are plain numbers
SHOWN = 8  # names in a message at most


class Labelled(Protocol):
    """Samples with labels (N,) int64, -1 = none, and what these mean: Features, Images."""

    @property
    def labels(self) -> Tensor:
        """The class number of each sample, (N,) int64; -1: it has none."""

    @property
    def classes(self) -> Names:
        """The names of the numbers 0, 1, ...; empty: they are plain numbers."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Class names that only one of two joined sets has, in the order of its labels."""

    bank: Names
    queries: Names

    @property
    def said(self) -> str:
        """Both lists in words; empty if the sets have the same classes."""
        only = (("the training set", self.bank), ("the test set", self.queries))
        return "; ".join(f"only {who} has {shown(names)}" for who, names in only if names)


@dataclass(frozen=True, slots=True)
class Joined:
    """Labels of the queries, (Q,) in the numbers of the bank, whose `classes` these are.

    `said`: what only one side has, in words; empty if nothing.
    """

    labels: Tensor
    classes: Names
    said: str = ""


def join(bank: Labelled, queries: Labelled, *, strict: bool = False) -> Joined:
    """Match the classes of two sets by name. A class that the bank lacks has label -1.

    Raises:
        SslpipeError: no name is in both; `strict`: a name is in one of them only.
    """
    if bank.classes == queries.classes:
        return Joined(queries.labels, queries.classes)
    known, own = (names_of(part.classes, part.labels) for part in (bank, queries))
    found = difference(known, own, strict=strict)
    labels = renumbered(queries.labels, own, known)
    lost = int(((queries.labels >= 0) & (labels < 0)).sum())
    left_out = f" ({lost:,} samples, left out)" if lost else ""
    return Joined(labels, bank.classes, found.said + left_out)


def shown(names: Names) -> str:
    """List some names, and how many more there are."""
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def class_names(batches: Iterable[Batch]) -> Names:
    """Read the class names of the shards behind `batches`; empty if there is none.

    Sets of other classes have no labels in a mixture, so those of the first set serve.
    """
    if isinstance(batches, Pipeline) and isinstance(batches.source, Packed):
        return batches.source.corpora[0].classes
    return ()


def difference(bank: Names, queries: Names, *, strict: bool = False) -> Difference:
    """Compare the classes of two sets whose labels are to be joined.

    Raises:
        SslpipeError: no name is in both; `strict`: a name is in one of them only.
    """
    found = Difference(
        tuple(name for name in bank if name not in set(queries)),
        tuple(name for name in queries if name not in set(bank)),
    )
    if not set(bank) & set(queries):
        raise SslpipeError(
            f"evaluation: no class of the test set ({shown(queries)}) is one of the training set "
            f"({shown(bank)}); labels are joined by name: give sets that share classes"
        )
    if strict and found.said:
        raise SslpipeError(
            f"evaluation: the classes differ: {found.said}; give sets of the same classes, or "
            "leave --strict (strict=True) out"
        )
    return found


def names_of(classes: Names, labels: Tensor) -> Names:
    """Name the classes of a set; plain numbers are their own names, as in packed tables.

    Raises:
        SslpipeError: a label is beyond the names.
    """
    count = int(labels.amax()) + 1 if len(labels) else 0
    if not classes:
        return tuple(map(str, range(count)))
    if count > len(classes):
        raise SslpipeError(
            f"evaluation: label {count - 1} has no name among {len(classes)} classes; give a name "
            "for each label"
        )
    return classes


def renumbered(labels: Tensor, own: Names, known: Names) -> Tensor:
    """Turn labels of a set of classes `own` into those of `known`; -1: none, or not known."""
    number = {name: i for i, name in enumerate(known)}
    table = torch.tensor([*(number.get(name, -1) for name in own), -1])
    return table[labels]  # label -1 reads the last entry
