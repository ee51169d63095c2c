"""Keys for draws that couple the samples of a global batch: mode `reference`.

They are made of step and slot alone, so every rank computes the same draws, however the batch is
split; it keeps those of its own slots.
"""

from dataclasses import replace

import numpy as np

from ..rng import Keys, Place


def all_slots(keys: Keys, place: Place) -> Keys:
    """One key per slot of the global batch."""
    steps = np.full(place.size, place.step, dtype=np.int64)
    return replace(keys, epochs=steps, uids=np.arange(place.size, dtype=np.int64))


def one_for_all(keys: Keys, place: Place) -> Keys:
    """One key for all samples and views of the global batch; draws are (1, 1, ...)."""
    zero = np.zeros(1, dtype=np.int64)
    return replace(keys, epochs=zero + place.step, uids=zero, views=zero)
