"""Batch norm over parts of a batch: what MoCo needs on any number of devices."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import ContractError


class GroupedBatchNorm(nn.Module):
    """A batch norm that takes the statistics of each of `groups` equal runs of samples.

    One group per GPU is what DDP does by itself; several are colab-notebook's SplitBatchNorm. It
    takes over the tensors of `norm`, under their names. It is no subclass of torch's, so that
    SyncBatchNorm.convert_sync_batchnorm leaves it alone.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, norm: _BatchNorm, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.eps = norm.eps
        self.momentum = cast(float, norm.momentum)
        self.weight, self.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers():
            self.register_buffer(name, buffer)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C) or (B, C, H, W), of the same shape and dtype."""
        if not self.training:
            mean_C, var_C = self.running_mean, self.running_var
            return F.batch_norm(x, mean_C, var_C, self.weight, self.bias, eps=self.eps)
        assert len(x) % self.groups == 0, (len(x), self.groups)
        means_GC = self.running_mean.repeat(self.groups, 1)
        vars_GC = self.running_var.repeat(self.groups, 1)
        parts = [
            F.batch_norm(
                part, mean_C, var_C, self.weight, self.bias, True, self.momentum, self.eps
            )
            for part, mean_C, var_C in zip(x.chunk(self.groups), means_GC, vars_GC, strict=True)
        ]  # fmt: skip
        self.track(means_GC, vars_GC)
        return parts[0] if self.groups == 1 else torch.cat(parts)

    @torch.no_grad()
    def track(self, means_GC: Tensor, vars_GC: Tensor) -> None:
        """Keep the mean of what the groups saw."""
        self.running_mean.copy_(means_GC.mean(0))
        self.running_var.copy_(vars_GC.mean(0))
        self.num_batches_tracked.add_(1)


def group_batch_norms(module: nn.Module, groups: int) -> None:
    """Replace every batch norm inside `module` by a grouped one; names in state_dict stay.

    Raises:
        ContractError: one is of a kind that a grouped norm cannot stand in for.
    """
    for parent in list(module.modules()):
        for name, norm in list(parent.named_children()):
            if isinstance(norm, _BatchNorm):
                setattr(parent, name, GroupedBatchNorm(checked(norm), groups))


def checked(norm: _BatchNorm) -> _BatchNorm:
    """Refuse what a grouped norm cannot stand in for.

    Raises:
        ContractError: a subclass, cumulative statistics, or none.
    """
    plain = type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d)
    if not plain or norm.momentum is None or not norm.track_running_stats:
        raise ContractError(
            f"batch norm in groups needs plain BatchNorm1d and 2d with a momentum, not {norm}; "
            "set bn_groups to 1, or train.backbone to a ResNet"
        )
    return norm
