"""What tests of methods on feature maps share."""

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


class MapsEncoder(nn.Module):
    """One convolution of stride 8 without batch norm; remembers what it saw."""

    def __init__(self, dim=6, channels=3):
        super().__init__()
        self.dim = dim
        self.conv = nn.Conv2d(channels, dim, 8, stride=8)

    def maps(self, images):
        self.seen = images.detach().clone()
        return self.conv(images)

    def forward(self, images):
        return self.maps(images).mean((2, 3))


class NoWait(TorchDispatchMode):
    """Raises where a value of the device would have to come to the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        assert name not in ("_local_scalar_dense", "nonzero", "bincount", "lift_fresh"), name
        assert not (
            name == "index" and any(i.dtype == torch.bool for i in args[1] if i is not None)
        )
        return func(*args, **(kwargs or {}))
