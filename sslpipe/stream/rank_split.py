"""Which samples of a mixed batch are one rank's: a closed form of (step, rank), as the batch is.

A rank should walk along few lanes of each set, so that its node reads few shards, and should have
its share of each set in every step. So the samples of a set in a batch are put in the order of
their lanes (lane_order.py), and of W ranks each takes the next part. Where these parts end says the
mixture's own calendar of the batch, gone round from a place that is drawn for each step: ranks have
equally many samples, of each set within four of their share, and exactly their share in the mean,
if that is less than one sample, too.

The batch does not depend on the ranks: all this says is who has which of its slots.
"""

from collections.abc import Sequence

import numpy as np

from .. import rng
from .lane_order import LaneOrder
from .mixture import Mixture
from .plan import I64, Picks


class RankSplit:
    """What is one rank's of the batches of a mixture. It keeps nothing: any thread may ask.

    samples, lanes: of an epoch of each corpus, (C,).
    """

    def __init__(
        self, plan: Mixture, *, samples: I64, lanes: I64, rank: int, world_size: int
    ) -> None:
        self._plan, self._samples, self._lanes = plan, samples, lanes
        self.share = plan.size // world_size  # samples of each batch
        self._parts = np.array([0, rank, rank + 1], dtype=np.int64) * self.share

    def picks(self, steps: Sequence[int]) -> Picks:
        """The samples of some steps behind each other, those of each in the order of its slots."""
        if self.share == self._plan.size:  # one rank: there is nothing to split
            return self._plan.batches(steps)
        begin = self._begin(steps)
        corpora, positions, places = self._all(begin)
        order = self._plan.permuted_order(steps, places)
        flat = (order + np.arange(len(steps))[:, None] * self.share).ravel()
        return Picks(corpora[flat], positions[flat], np.ones(len(flat), dtype=np.bool_))

    def at(self, step: int) -> I64:
        """The slots of the samples of a step, ascending; they are found by permuting the batch."""
        if self.share == self._plan.size:
            return np.arange(self.share)
        _, _, places = self._all(self._begin([step]))
        mine = np.zeros(self._plan.size, dtype=np.bool_)
        mine[places] = True
        return np.flatnonzero(mine[self._plan.permuted([step])[0]])

    def _all(self, begin: I64) -> tuple[I64, I64, I64]:
        """Corpora and positions of all samples, and the places of each step, (steps, share)."""
        corpora, positions, _ = self._positions(begin, np.arange(len(self._samples)))
        places = self._plan.places(corpora, positions).reshape(len(begin), self.share)
        return corpora, positions, places - begin

    def positions(self, steps: Sequence[int], corpus: int) -> list[I64]:
        """The positions of one corpus in each of some steps."""
        _, positions, counts = self._positions(self._begin(steps), np.array([corpus]))
        return np.split(positions, np.cumsum(counts)[:-1])

    def _positions(self, begin: I64, corpora: I64) -> tuple[I64, I64, I64]:
        """Of which of some corpora samples are, their positions, and the counts by step and corpus.

        Steps lie behind each other, and in these corpora.
        """
        first, last, low, high = self._cuts(begin, corpora)
        counts = high - low
        streams = np.repeat(np.arange(len(counts)), counts)
        numbers = np.arange(len(streams)) + np.repeat(low - (np.cumsum(counts) - counts), counts)
        of = np.tile(corpora, len(begin))
        lanes = LaneOrder(first, last, samples=self._samples[of], lanes=self._lanes[of])
        return of[streams], lanes.positions(numbers, streams), counts

    def _cuts(self, begin: I64, corpora: I64) -> list[I64]:
        """Where corpora stand at the beginning and end of steps, and which of their samples are in
        this rank's part, by their numbers in the order of lanes: four arrays (steps * corpora,).
        """
        size = self._plan.size
        turned = rng.words(
            1, seed=self._plan.seed, epoch=begin[:, 0] // size, stream="order/mix/ranks", ids=0
        )
        places = turned.astype(np.int64) % size + self._parts
        rounds, places = np.divmod(places, size)
        asked = np.concatenate([begin, begin + size, begin + places], axis=1)
        first, last, *had = self._plan.had(asked, corpora).swapaxes(0, 1)
        # behind the end of a batch its calendar goes on with its beginning
        start, low, high = ((h + rounds[:, [part]] * (last - first)) for part, h in enumerate(had))
        return [each.ravel() for each in (first, last, low - start, high - start)]

    def _begin(self, steps: Sequence[int]) -> I64:
        """The first places of steps in the calendar, (steps, 1)."""
        return np.array(steps, dtype=np.int64)[:, None] * self._plan.size
