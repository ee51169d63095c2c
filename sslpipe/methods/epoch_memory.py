"""The embeddings of the last epoch, with the ids of their samples; equal on all ranks.

A views per sample, N places: the samples of an epoch.
"""

import torch
from torch import Tensor, nn

from .parts.collectives import gather


class EpochMemory(nn.Module):
    """A ring in the order of arrival: an elastic stream has no positions of samples, only ids."""

    rows_AND: Tensor
    uids_N: Tensor

    def __init__(self, views: int, places: int, dim: int) -> None:
        super().__init__()
        self.stored = 0  # samples ever stored; on the host, so that nothing waits for the device
        self.register_buffer("rows_AND", torch.zeros(views, places, dim))
        self.register_buffer("uids_N", torch.zeros(places, dtype=torch.int64))

    def __len__(self) -> int:
        """How many places are filled."""
        return min(self.stored, len(self.uids_N))

    @torch.no_grad()
    def remember(self, rows_ABD: Tensor, uids_B: Tensor) -> None:
        """Replace the oldest places by the samples of all ranks, in the order of ranks."""
        rows_BAD, uids = gather(rows_ABD.detach().transpose(0, 1)), gather(uids_B)
        places_B = torch.arange(self.stored, self.stored + len(uids), device=uids.device)
        places_B = places_B % len(self.uids_N)
        self.rows_AND[:, places_B] = rows_BAD.transpose(0, 1).to(self.rows_AND.dtype)
        self.uids_N[places_B] = uids
        self.stored += len(uids)

    def get_extra_state(self) -> int:
        """The part of the state_dict that is no tensor."""
        return self.stored

    def set_extra_state(self, state: int) -> None:
        """Take it back."""
        self.stored = state
