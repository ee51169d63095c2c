"""Several corpora in one stream by weight: a closed form of the step, like the rest of the order.

A calendar of D slots, D the weights' common denominator, says whose turn each slot of the stream
is; it repeats for ever. After any number of slots every corpus has had less than one sample more
or less than its weight asks (Baruah et al. 1996, "Proportionate progress": the windows of
P-fairness, met by the earliest deadline first). Rounding weight * n for each corpus would not do:
where a corpus has less than one sample per batch, its count could go back.
"""

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Generic, TypeVar

import numpy as np

from ..errors import RecipeError
from ..permutations import order_of_places, permutations
from .plan import I64, Picks

T = TypeVar("T")
PERMUTED = "order/mix"  # the stream of what permutes batches
PLANNED = 1 << 12  # samples that are planned in one go: 1 MB with all that is decided of them
STEPS = 64  # at most: each takes 3 kB, however few samples it has
PARTS = 1 << 16  # weights with a larger common denominator are rounded to multiples of 1 / PARTS


class Mixture:
    """Batches of several corpora, `turns[c]` of every sum(turns) slots being of corpus c.

    Every corpus has a stream, a cursor and epochs of its own; an epoch of the mixture is
    `epoch_samples` samples. Batch t takes the places [t * size, (t + 1) * size) of the calendar,
    permuted. It keeps nothing: any thread may ask.
    """

    def __init__(
        self, turns: Sequence[int], *, batch_size: int, seed: int, epoch_samples: int
    ) -> None:
        self.size, self.seed, self._epoch = batch_size, seed, epoch_samples
        self.turns = np.array(turns, dtype=np.int64)
        self.whose, self._round = calendar(turns), sum(turns)
        self.before = ordinals(self.whose, len(turns))
        own = np.argsort(self.whose, kind="stable")  # the places of each corpus, ascending
        self._own, self._first = self.whose[own] * self._round + own, np.cumsum(turns) - turns

    def __len__(self) -> int:
        """Batches per epoch."""
        return max(1, self._epoch // self.size)

    def __call__(self, step: int, slots: I64) -> Picks:
        """The samples in some slots of a batch."""
        return self.batches([step]).at(slots)

    def batches(self, steps: Sequence[int]) -> Picks:
        """All samples of some steps behind each other, in the order of slots."""
        places = np.array(steps, dtype=np.int64)[:, None] * self.size + self.permuted(steps)
        rounds, place = np.divmod(places.ravel(), self._round)
        corpora = self.whose[place]
        positions = rounds * self.turns[corpora] + self.before[place]
        return Picks(corpora, positions, np.ones(len(place), dtype=np.bool_))

    def permuted(self, steps: Sequence[int]) -> I64:
        """The place of each slot, counted from the first of its batch: (steps, size)."""
        epochs = np.array(steps, dtype=np.int64)
        return permutations(self.size, seed=self.seed, epochs=epochs, stream=PERMUTED)

    def permuted_order(self, steps: Sequence[int], places: I64) -> I64:
        """The order of slots of some places of batches, (steps, n), found without all others."""
        epochs = np.array(steps, dtype=np.int64)
        return order_of_places(places, seed=self.seed, epochs=epochs, stream=PERMUTED)

    def places(self, corpora: I64, positions: I64) -> I64:
        """Where samples stand in the calendar."""
        rounds, turn = np.divmod(positions, self.turns[corpora])
        found: I64 = self._own[self._first[corpora] + turn] + (rounds - corpora) * self._round
        return found

    def had(self, places: I64, corpora: I64) -> I64:
        """How many samples some corpora have before some places of the calendar: (..., corpora)."""
        rounds, place = np.divmod(places[..., None], self._round)
        found = np.searchsorted(self._own, corpora * self._round + place) - self._first[corpora]
        return np.asarray(rounds * self.turns[corpora] + found)


class StepsInARow(Generic[T]):
    """Answer for a step; where steps follow each other, find those behind them too, more and more.

    `find(steps)`: the answers for some steps, or for the first of them; a function of these alone,
    `samples` for each step. One thread may ask.
    """

    def __init__(self, find: Callable[[Sequence[int]], Sequence[T]], *, samples: int) -> None:
        self._find, self._count = find, max(1, min(STEPS, PLANNED // max(1, samples)))
        self._kept: dict[int, T] = {}
        self._last, self._ahead = -1, 1  # the step before; how many steps were found together

    def __call__(self, step: int) -> T:
        in_a_row, self._last = step == self._last + 1, step
        if step in self._kept:
            return self._kept[step]
        self._ahead = min(2 * self._ahead, self._count) if in_a_row else 1
        if not in_a_row:
            return self._find([step])[0]
        steps = range(step, step + self._ahead)
        found = self._find(steps)
        self._kept = dict(zip(steps, found, strict=False))
        return found[0]


def turns_of(weights: Mapping[str, float]) -> list[int]:
    """Weights as whole numbers of turns, in their exact proportion, if PARTS turns suffice.

    Raises:
        RecipeError: a weight is too small to be kept.
    """
    exact = [Fraction(str(weight)) for weight in weights.values()]
    shares = [weight / sum(exact) for weight in exact]
    parts = min(PARTS, math.lcm(*(share.denominator for share in shares)))
    turns = [math.floor(share * parts) for share in shares]
    rests = [share * parts - turn for share, turn in zip(shares, turns, strict=True)]
    largest = sorted(range(len(rests)), key=lambda corpus: -rests[corpus])
    for corpus in largest[: parts - sum(turns)]:
        turns[corpus] += 1
    for name, turn, share in zip(weights, turns, shares, strict=True):
        if not turn:
            raise RecipeError(
                f"stream.mix: {name!r} has a share of {float(share):.2g}, less than 1 of {PARTS:,} "
                "samples; give stream.mix weights that are nearer to each other, or leave it out"
            )
    return turns


def calendar(turns: Sequence[int]) -> I64:
    """Whose turn it is in each of sum(turns) slots: earliest deadline first.

    Turn j of a corpus with n of D turns may stand in the slots [floor(j D / n), ceil((j+1) D / n)).
    """
    total = sum(turns)
    windows = sorted(
        (j * total // n, -(-(j + 1) * total // n), corpus)
        for corpus, n in enumerate(turns)
        for j in range(n)
    )
    waiting: list[tuple[int, int]] = []
    whose = np.empty(total, dtype=np.int64)
    released = 0
    for slot in range(total):
        while released < total and windows[released][0] <= slot:
            heapq.heappush(waiting, windows[released][1:])
            released += 1
        whose[slot] = heapq.heappop(waiting)[1]
    return whose


def ordinals(whose: I64, corpora: int) -> I64:
    """How many turns the owner of each slot had before it."""
    before = np.empty_like(whose)
    for corpus in range(corpora):
        own = np.flatnonzero(whose == corpus)
        before[own] = np.arange(len(own))
    return before
