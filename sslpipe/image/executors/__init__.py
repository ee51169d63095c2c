"""Executors: canvases + parameter table -> views. Stateless; all agree with `kornia`."""

import functools
import importlib.util
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...errors import RecipeError
from ..draws import Policy
from . import kornia

Name = Literal["auto", "kornia", "cpu"]


class Executor(Protocol):
    """Makes the views of one group: (V, B, 3, h, w) float32 on the device."""

    def __call__(
        self,
        policy: Policy,
        canvases: Sequence[Tensor],
        table_VBP: npt.NDArray[np.float32],
        *,
        device: torch.device,
    ) -> Tensor: ...


def choose(
    name: Name, policy: Policy, device: torch.device, *, threads: ThreadPoolExecutor | None = None
) -> Executor:
    """The executor of that name. `auto`: the fastest that knows all ops of the policy, else kornia.

    threads: for those that work on the CPU; None: the caller's alone.

    Raises:
        RecipeError: it is not installed or does not know an op.
    """
    if name == "kornia" or (name == "auto" and device.type != "cpu"):
        return kornia.execute
    obstacle = cpu_obstacle(policy)
    if obstacle is None:
        from . import cpu  # numba takes half a second to import

        return functools.partial(cpu.execute, threads=threads)
    if name == "auto":
        return kornia.execute
    raise RecipeError(f"run.executor = 'cpu': {obstacle}, or write executor: auto")


def cpu_obstacle(policy: Policy) -> str | None:
    """Why the `cpu` executor cannot do a policy, and what to do."""
    if importlib.util.find_spec("numba") is None:
        return 'numba is missing; pip install "sslpipe[cpu]"'
    from . import cpu

    names = ", ".join(cpu.unsupported(policy))
    return f"it does not know {names}; leave the op out" if names else None
