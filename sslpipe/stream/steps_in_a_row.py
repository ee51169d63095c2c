"""Answers about many steps at once: NumPy takes as long for 32 positions as for a thousand."""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
AHEAD = 1 << 13  # samples that are planned in one go: 0.5 MB


class StepsInARow(Generic[T]):
    """Answer for a step; where two steps follow each other, find those behind them too.

    `find(steps)`: the answers for some steps; a function of these alone, `samples` for each step.
    One thread may ask.
    """

    def __init__(self, find: Callable[[Sequence[int]], Sequence[T]], *, samples: int) -> None:
        self._find, self._count = find, max(1, AHEAD // max(1, samples))
        self._kept: dict[int, T] = {}
        self._last = -1

    def __call__(self, step: int) -> T:
        in_a_row, self._last = step == self._last + 1, step
        if step in self._kept:
            return self._kept[step]
        if not in_a_row:
            return self._find([step])[0]
        steps = range(step, step + self._count)
        self._kept = dict(zip(steps, self._find(steps), strict=True))
        return self._kept[step]
