"""The colours that colorization chooses from: a grid of (a, b), about those that sRGB can show."""

import torch
from torch import Tensor

STEP = 10  # between bins, in a and b
LEAST_A = -90
# Least and greatest b for each a, ascending: pts_in_hull.npy of richzhang/colorization, which was
# shipped and not explained (in text: OpenCV, samples/dnn/colorization.cpp).
RANGES = (
    *((50, 90), (20, 90), (0, 90), (-20, 90), (-30, 100), (-40, 100), (-50, 100), (-50, 100)),
    *((-60, 100), (-70, 100), (-80, 90), (-80, 90), (-90, 90), (-100, 90), (-100, 80)),
    *((-110, 80), (-110, 80), (-110, 70), (-110, 70), (-90, 0)),
)


def ab_bins() -> Tensor:
    """(313, 2) float32 in the official order: a, then b, ascending.

    Some, like (-90, 50), are the nearest to no colour; no colour is further than 7.1 from all.
    """
    bins = [
        (LEAST_A + STEP * row, b)
        for row, (low, high) in enumerate(RANGES)
        for b in range(low, high + 1, STEP)
    ]
    return torch.tensor(bins, dtype=torch.float32)
