"""Batch norm whose statistics are those of the joined batch of all ranks, on any device.

torch's SyncBatchNorm is for GPUs alone, and its conversion takes the activation out of timm's norms
that have one, without a word. Here every batch norm of a method is joined, or refused.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..encoders.libraries import library
from ..errors import SslpipeError
from ..methods.parts.collectives import joint_mean
from ..process import group_ranks

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
WITH_ACTIVATION = "BatchNormAct2d"  # timm's, by name: it need not be installed


class JointBatchNorm(_BatchNorm):
    """A batch norm over the samples of all ranks, which must have equally many.

    In training, means and variances (divided by N) travel, and so do their gradients: loss and
    gradients are those of one process on the joined batch. It takes over the tensors of `norm`,
    under their names.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, affine=False)
        self.affine, self.track_running_stats = norm.affine, norm.track_running_stats
        self.weight, self.bias = norm.weight, norm.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            setattr(self, name, getattr(norm, name))
        self.train(norm.training)

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002
        """Take (B, C) and (B, C, ...)."""
        assert input.ndim >= 2, input.shape

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C) or (B, C, ...) in at least float32; shape and dtype stay."""
        if not self.training and self.running_mean is not None:
            return super().forward(x)
        axes = [0, *range(2, x.ndim)]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean_1C1 = joint_mean(wide.mean(axes, keepdim=True))
        centred = wide - mean_1C1
        var_1C1 = joint_mean(centred.square().mean(axes, keepdim=True))
        if self.training and self.running_mean is not None:
            self.track(mean_1C1.flatten(), var_1C1.flatten(), x.numel() // x.shape[1])
        y = centred * (var_1C1 + self.eps).rsqrt()
        if self.affine:
            shape = mean_1C1.shape
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(x.dtype)

    @torch.no_grad()
    def track(self, mean_C: Tensor, var_C: Tensor, values: int) -> None:
        """Move the running statistics, the variance as of a sample: `values` a rank and channel."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        count = values * group_ranks().size
        unbiased_C = var_C * (count / max(count - 1, 1))
        # without a momentum: the mean over all batches, as torch has it
        factor = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean_C.to(self.running_mean.dtype), factor)
        self.running_var.lerp_(unbiased_C.to(self.running_var.dtype), factor)


class JointBatchNormAct(JointBatchNorm):
    """timm's BatchNormAct2d so: with the dropout and the activation that it has behind the norm."""

    def __init__(self, norm: Any) -> None:
        super().__init__(norm)
        self.drop, self.act = norm.drop, norm.act

    def forward(self, x: Tensor) -> Tensor:
        """Normalise and activate (B, C, H, W)."""
        active: Tensor = self.act(self.drop(super().forward(x)))
        return active


def join_norms(module: nn.Module, device: torch.device) -> nn.Module:
    """Replace all batch norms within a module by joined ones, of `device`; names and tensors stay.

    On CUDA they are torch's and timm's SyncBatchNorm. MoCo's groups are none of them and stay.

    Raises:
        SslpipeError: a batch norm of another kind, whose forward pass would be lost.
    """
    norms = {name: part for name, part in module.named_modules() if isinstance(part, _BatchNorm)}
    active = [part for part in norms.values() if type(part).__name__ == WITH_ACTIVATION]
    for name, part in norms.items():
        if type(part) not in PLAIN and part not in active:
            raise SslpipeError(
                f"train: {name} is a {type(part).__name__}, whose statistics cannot be joined over "
                "ranks; use nn.BatchNorm1d, 2d or 3d, or train on one process"
            )
    if device.type == "cuda":
        convert = library("timm.layers").convert_sync_batchnorm if active else torch_joined
        converted: nn.Module = convert(module)
        return converted
    twins = {id(part): (JointBatchNormAct if part in active else JointBatchNorm)(part)
             for part in norms.values()}  # fmt: skip
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if id(child) in twins:
                setattr(parent, name, twins[id(child)])
    return twins.get(id(module), module)


def torch_joined(module: nn.Module) -> nn.Module:
    """What torch's own conversion makes of plain batch norms."""
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
    return converted
