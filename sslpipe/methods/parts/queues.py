"""Memories of the embeddings of the last global batches, equal on all ranks (MoCo, NNCLR, SwAV)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import ContractError
from .collectives import gather


class Queue(nn.Module):
    """First in, first out: each global batch replaces the oldest one. Q rows here.

    Rows and their number are in the state_dict. The number is a Python int, so that asking
    whether the queue is full never waits for the device.
    """

    rows_QD: Tensor

    def __init__(self, rows_QD: Tensor, *, batch: int, setting: str) -> None:
        """Start with `rows_QD`: `random_rows`, or zeros where nothing reads it before it is `full`.

        `batch` rows come at a time, over all ranks; `setting` is where the recipe says Q.

        Raises:
            ContractError: Q is no positive multiple of `batch`.
        """
        super().__init__()
        size = len(rows_QD)
        if size < batch or size % batch:
            raise ContractError(
                f"{setting} = {size} is no multiple of the global batch of {batch}; "
                f"set {setting} to {max(size // batch, 1) * batch}, or change stream.batch_size"
            )
        self.batch = batch
        self.seen = 0  # rows ever enqueued
        self.register_buffer("rows_QD", rows_QD.clone())

    @property
    def full(self) -> bool:
        """Tell whether every row has been enqueued."""
        return self.seen >= len(self.rows_QD)

    def snapshot(self) -> Tensor:
        """Copy the rows for a loss: backward needs them as they were before `enqueue`."""
        return self.rows_QD.clone()

    @torch.no_grad()
    def enqueue(self, rows_BD: Tensor) -> None:
        """Replace the oldest rows by those of all ranks, in the order of ranks.

        Call it AFTER the loss: a positive must not be among its own negatives.
        """
        new = gather(rows_BD.detach())
        assert len(new) == self.batch, (len(new), self.batch)
        start = self.seen % len(self.rows_QD)
        self.rows_QD[start : start + self.batch] = new.to(self.rows_QD.dtype)
        self.seen += self.batch

    def get_extra_state(self) -> int:
        """Save the number of rows seen, the part of the state_dict that is no tensor."""
        return self.seen

    def set_extra_state(self, state: int) -> None:
        """Restore what `get_extra_state` saved."""
        self.seen = state


def random_rows(size: int, dim: int) -> Tensor:
    """Draw (size, dim) directions evenly from the sphere, float32: MoCo's start (builder.py)."""
    return F.normalize(torch.randn(size, dim), dim=1)
