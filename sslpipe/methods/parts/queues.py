"""Memories of the embeddings of the last global batches, equal on all ranks (MoCo, NNCLR, SwAV).

What `train.compile` asks of memories: torch takes ints and floats that a module holds for
constants, compiles the pass anew for each other value, and gives up after 8. So what changes from
step to step is a tensor, or becomes a bool between steps (SwAV's phases), or is read by a function
that is left to Python (DeepCluster's epoch). Such a function may not write what the pass before it
has read: the gradients of that pass may still need it.
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


class Queue(nn.Module):
    """First in, first out: each global batch replaces the oldest one. Q rows here.

    Rows and their number are in the state_dict.
    """

    rows_QD: Tensor
    seen: Tensor  # rows ever enqueued, int64

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
        self.full = False  # as `look` last found
        self.register_buffer("rows_QD", rows_QD.clone())
        # saved by get_extra_state, as runs have it that were begun when it was an int
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64), persistent=False)

    def look(self) -> None:
        """Find whether every row has been enqueued; once full, a queue stays so.

        Until then it waits for the device; call it between steps.
        """
        self.full = self.full or int(self.seen) >= len(self.rows_QD)

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
        places_B = self.seen % len(self.rows_QD) + torch.arange(self.batch, device=new.device)
        self.rows_QD.index_copy_(0, places_B, new.to(self.rows_QD.dtype))
        self.seen.add_(self.batch)

    def get_extra_state(self) -> int:
        """Save the number of rows seen, the part of the state_dict that is no tensor."""
        return int(self.seen)

    def set_extra_state(self, state: int) -> None:
        """Restore what `get_extra_state` saved."""
        self.seen.fill_(state)
        self.full = state >= len(self.rows_QD)


def random_rows(size: int, dim: int) -> Tensor:
    """Draw (size, dim) directions evenly from the sphere, float32: MoCo's start (builder.py)."""
    return F.normalize(torch.randn(size, dim), dim=1)


def uncompiled(function: Callable[P, R]) -> Callable[P, R]:
    """Leave a function to Python where torch.compile compiles what calls it.

    As torch.compiler.disable does, which would import dynamo, a second of CPU time, beside every
    method; this does so at the first call.
    """
    return _disable_dynamo(function)
