"""The collectives that losses need. Without torch.distributed they are the identity.

All ranks must hold equally many samples, as the pipeline deals them.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ...process import group_ranks


class AllGather(torch.autograd.Function):
    """Concatenate over ranks along axis 0; gradients of all ranks come back summed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Join (B, ...) of each rank to (size * B, ...), in the order of ranks."""
        parts = [torch.empty_like(x) for _ in range(group_ranks().size)]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """Sum over ranks and take the own slice. A reduce-scatter moves less, but gloo has none."""
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(group_ranks().size)[group_ranks().rank]


def gather(x: Tensor) -> Tensor:
    """Gather (B, ...) of each rank into (size * B, ...), in the order of ranks, with gradient.

    The gradient is that of the SUM of all ranks' losses. DDP then averages parameter gradients,
    which makes it the gradient of the mean over ranks: nothing is to be rescaled.
    """
    if group_ranks().size == 1:
        return x
    gathered: Tensor = AllGather.apply(x)
    return gathered


def own_places(rows: Tensor) -> Tensor:
    """Number this rank's rows (B, ...) among those that `gather` joins: (B,) int64."""
    return group_ranks().rank * len(rows) + torch.arange(len(rows), device=rows.device)


class AllMean(torch.autograd.Function):
    """Average over ranks, and the gradient likewise."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Give every rank the same mean."""
        return all_mean(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """Average what each rank's loss wants."""
        return all_mean(grads[0])


def joint_mean(x: Tensor) -> Tensor:
    """Average over ranks, a tensor of any shape, which all ranks must have alike.

    The gradient is that of the SUM of all losses, as with `gather`.
    """
    if group_ranks().size == 1:
        return x
    mean: Tensor = AllMean.apply(x)
    return mean


@torch.no_grad()
def all_mean(x: Tensor) -> Tensor:
    """Average over ranks, without gradient; `x`, of the same shape on all, stays as it is."""
    if group_ranks().size == 1:
        return x.detach()
    total = x.detach().clone()
    dist.all_reduce(total)
    return total / group_ranks().size
