"""Memories of the embeddings of the last global batches, equal on all ranks (MoCo, NNCLR, SwAV).

What `train.compile` asks of memories: torch takes the ints and floats of a module for constants,
compiles the pass anew for each other value, and gives up after 8. So what changes from step to step
is read in a function that is left to Python, before anything else is done: where a pass is cut
later, what is written behind the cut may be what gradients of the part before it still need.
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from ...errors import ContractError
from .collectives import gather

P = ParamSpec("P")
R = TypeVar("R")


def uncompiled(function: Callable[P, R]) -> Callable[P, R]:
    """Leave a function to Python where torch.compile compiles what calls it.

    As torch.compiler.disable does, which would import dynamo, a second of CPU time, beside every
    method; this does so at the first call.
    """
    return _disable_dynamo(function)


class Queue(nn.Module):
    """First in, first out: each global batch replaces the oldest one. Q rows here.

    A pass begins with `turn` and ends with `enqueue`. Rows and their number are in the state_dict.
    The number is a Python int, so that asking whether the queue is full never waits for the device.
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
        self.full = False  # whether every row has been, at the last `turn`
        self.register_buffer("rows_QD", rows_QD.clone())

    @uncompiled
    def turn(self, *, enqueues: bool) -> Tensor:
        """Number the oldest rows, (batch,) int64; they count as replaced if the pass `enqueues`."""
        first = self.seen % len(self.rows_QD)
        self.full = self.seen >= len(self.rows_QD)
        self.seen += self.batch if enqueues else 0
        return torch.arange(first, first + self.batch, device=self.rows_QD.device)

    def snapshot(self) -> Tensor:
        """Copy the rows for a loss: backward needs them as they were before `enqueue`."""
        return self.rows_QD.clone()

    @torch.no_grad()
    def enqueue(self, rows_BD: Tensor, places_B: Tensor) -> None:
        """Replace the rows that `turn` named by those of all ranks, in the order of ranks.

        Call it AFTER the loss: a positive must not be among its own negatives.
        """
        new = gather(rows_BD.detach())
        assert len(new) == self.batch, (len(new), self.batch)
        self.rows_QD.index_copy_(0, places_B, new.to(self.rows_QD.dtype))

    def get_extra_state(self) -> int:
        """Save the number of rows seen, the part of the state_dict that is no tensor."""
        return self.seen

    def set_extra_state(self, state: int) -> None:
        """Restore what `get_extra_state` saved."""
        self.seen = state


def random_rows(size: int, dim: int) -> Tensor:
    """Draw (size, dim) directions evenly from the sphere, float32: MoCo's start (builder.py)."""
    return F.normalize(torch.randn(size, dim), dim=1)
