"""Which classes are taken for which, and which do best and worst."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One class: its samples, and how many of them were recognised."""

    name: str
    samples: int
    right: int

    @property
    def share(self) -> float:
        """Give the recall of the class, in [0, 1]."""
        return self.right / self.samples


@dataclass(frozen=True, slots=True)
class Mistake:
    """Samples of one class that were taken for another; `share`: of all of the class."""

    truth: str
    taken_for: str
    samples: int
    share: float


@dataclass(frozen=True, slots=True)
class ConfusionTable:
    """The largest classes against what they were taken for, and a summary of all of them.

    `counts`: a row for each of `names`, a column for each of them and a last one for all others.
    A row sums to the samples of its class.
    """

    names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    scores: tuple[ClassScore, ...]  # of all classes that have samples, the worst first
    mistakes: tuple[Mistake, ...]  # the most frequent first


def confusion(
    labels: I64, predicted: I64, names: Sequence[str], *, largest: int = 12
) -> ConfusionTable:
    """Count predictions (N,) against labels (N,); label i is called `names[i]`.

    A prediction of -1 is none: it counts among the others.
    """
    kinds = len(names)
    known = labels >= 0
    cells = np.zeros((kinds, kinds + 1), dtype=np.int64)
    np.add.at(cells, (labels[known], predicted[known]), 1)  # -1 is the last column
    sizes = cells.sum(axis=1)
    order = np.argsort(-sizes, kind="stable")
    shown = order[: min(largest, int((sizes > 0).sum()))]
    shown.sort()
    inside = cells[np.ix_(shown, shown)]
    counts = np.column_stack([inside, sizes[shown] - inside.sum(axis=1)])
    return ConfusionTable(
        tuple(names[i] for i in shown),
        tuple(tuple(row) for row in counts.tolist()),
        scores_of(cells, names),
        mistakes_of(cells, names),
    )


def scores_of(cells: I64, names: Sequence[str]) -> tuple[ClassScore, ...]:
    """Every class that has samples, the worst first, equals in the order of their names."""
    sizes = cells.sum(axis=1).tolist()
    found = [ClassScore(n, sizes[i], int(cells[i, i])) for i, n in enumerate(names) if sizes[i]]
    return tuple(sorted(found, key=lambda score: (score.share, score.name)))


def mistakes_of(cells: I64, names: Sequence[str], *, most: int = 10) -> tuple[Mistake, ...]:
    """The pairs of classes that are mixed up most often."""
    wrong = cells[:, :-1].copy()
    np.fill_diagonal(wrong, 0)
    pairs = np.argwhere(wrong)
    order = sorted(pairs.tolist(), key=lambda p: (-int(wrong[p[0], p[1]]), p))
    return tuple(
        Mistake(names[a], names[b], int(wrong[a, b]), float(wrong[a, b] / cells[a].sum()))
        for a, b in order[:most]
    )
