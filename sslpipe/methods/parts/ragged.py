"""Rows that choose different numbers of patches, padded to the longest one.

The counts are known on the host (Batch.hidden), so no shape waits for the device.
S patches of the longest row here.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .collectives import all_mean
from .patches import visible_first


class Padded(NamedTuple):
    """The chosen patches of each row in raster order, then padding: patches not chosen."""

    index_BS: Tensor  # int64 patch numbers
    real_BS: Tensor  # bool; False: padding
    even: bool  # no row has padding, known on the host


def padded(chosen_BN: Tensor, counts: npt.NDArray[np.int64]) -> Padded:
    """Patch numbers of what each row chooses; `counts` are those of all rows, in any shape."""
    most = int(counts.max())
    index_BS = visible_first(~chosen_BN)[:, :most]
    return Padded(index_BS, chosen_BN.gather(1, index_BS), bool(counts.min() == most))


def real_keys(*parts: Padded) -> Tensor | None:
    """What may be attended to where `parts` stand side by side: (B, S) bool.

    None where nothing is padding: attention without a mask has the faster kernels.
    """
    if all(part.even for part in parts):
        return None
    return torch.cat([part.real_BS for part in parts], dim=1)


def mean_of_real(values_BS: Tensor, real_BS: Tensor) -> Tensor:
    """Mean over the real entries; its mean over ranks is that over the joined batch.

    Ranks differ in how many entries are real, hence the division by their mean number.
    """
    real = real_BS.to(values_BS.dtype)
    return (values_BS * real).sum() / all_mean(real.sum())
