"""Samples that follow each other in a stream, in the order of their lanes: a closed form.

Lanes go by their numbers with the bits reversed (van der Corput 1935): 0, 4, 2, 6, 1, 5, 3, 7. Of
any lanes that lie beside each other about as many stand in each part of this order, so a part of
the samples is of about the same lanes wherever in its lanes the stream stands.
"""

import numpy as np

from .plan import I64


class LaneOrder:
    """The samples [first, last) of some streams: arrays (k,), as are samples and lanes of an epoch.

    A sample is of lane (place in its epoch) % lanes.
    """

    def __init__(self, first: I64, last: I64, *, samples: I64, lanes: I64) -> None:
        self._samples, self._lanes = samples, lanes
        self._epoch, begin = np.divmod(first, samples)
        last_epoch, end = np.divmod(last, samples)
        self._epochs = last_epoch - self._epoch  # that end in between
        self._cycles, self._begin = np.divmod(begin, lanes)
        cycles, self._end = np.divmod(end, lanes)
        self._length, self._longer = np.divmod(samples, lanes)  # of lanes; how many have one more
        # each lane has so many samples here; those below `_end` have one more, those below `_begin`
        # one less, those below `_longer` one more for each epoch that ends
        self._turns = self._epochs * self._length + cycles - self._cycles

    def positions(self, numbers: I64, streams: I64) -> I64:
        """Where in streams the samples stand that have these numbers in the order of lanes: (n,).

        numbers: from 0, counted in the stream of each.
        """
        lane, left = self._found(numbers, streams)
        samples, lanes, cycles = (
            each[streams] for each in (self._samples, self._lanes, self._cycles)
        )
        length = self._length[streams] + (self._longer[streams] > lane)
        left += cycles + (self._begin[streams] > lane)
        epochs, turn = np.divmod(left, length)
        found: I64 = (self._epoch[streams] + epochs) * samples + turn * lanes + lane
        return found

    def _found(self, numbers: I64, streams: I64) -> tuple[I64, I64]:
        """The lane of each, and which of the samples of that lane it is.

        One bit of the lane after another, the lowest first: those that have a 0 there go before.
        """
        columns = (self._turns, self._lanes, self._end, self._begin)
        turns, lanes, end, begin = (each[streams] for each in columns)
        epochs, longer = self._epochs[streams], self._longer[streams]
        lane, left = np.zeros_like(numbers), numbers.copy()
        for bit in range(int(self._lanes.max() - 1).bit_length()):
            rest, shift = (2 << bit) - 1 - lane, bit + 1
            # (below + rest) >> shift: of the lanes below, those that end in the bits found and a 0
            before = turns * ((lanes + rest) >> shift) + ((end + rest) >> shift)
            before -= (begin + rest) >> shift
            if self._epochs.any():
                before += epochs * ((longer + rest) >> shift)
            odd = left >= before
            left -= before * odd
            lane += odd.astype(np.int64) << bit
        return lane, left
