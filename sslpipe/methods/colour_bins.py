"""The colours that colorization chooses from: a grid of (a, b) that sRGB can show, or nearly."""

import torch
from kornia.color import rgb_to_lab
from torch import Tensor

BINS = 313  # of arXiv:1603.08511
STEP = 10  # between bins, in a and b
SAMPLES = 33  # per side of the colour cube: the set is the same with 65 and 129


def ab_bins() -> Tensor:
    """(313, 2) float32: the 313 points (a, b) of the grid that are nearest to the gamut of sRGB.

    The paper's number but maybe not its very set: pts_in_hull.npy was shipped, not explained, and
    holds points like (-90, 50) that no colour has as its nearest; those that have one are 261.
    """
    axis = torch.arange(-11, 12, dtype=torch.float32) * STEP
    grid_K2 = torch.cartesian_prod(axis, axis)
    nearest_K = torch.cdist(grid_K2, gamut_surface()).amin(1)
    kept = nearest_K.argsort(stable=True)[:BINS].sort().values
    return grid_K2[kept]


def gamut_surface() -> Tensor:
    """(a, b) of the faces of the colour cube, which hold all extremes of colour."""
    level = torch.linspace(0, 1, SAMPLES)
    face = torch.cartesian_prod(level, level)
    ends = [torch.full((len(face), 1), end) for end in (0.0, 1.0)]
    faces = [torch.cat([face[:, :i], end, face[:, i:]], 1) for i in range(3) for end in ends]
    return lab_ab(torch.cat(faces))


def lab_ab(rgb_N3: Tensor) -> Tensor:
    """(N, 3) sRGB in [0, 1] -> (N, 2) a and b of CIE Lab, D65."""
    lab_13N1: Tensor = rgb_to_lab(rgb_N3.T[None, :, :, None])
    return lab_13N1[0, 1:, :, 0].T
