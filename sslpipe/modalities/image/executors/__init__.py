"""Executors: canvases + parameter table -> views. Stateless; all agree with `kornia`.

kornia     the reference: genuine Kornia operations, CPU and CUDA, every op
cpu        numba, sample by sample in the cache
compiled   one Inductor graph of planar ops per group, for CUDA; compiles for a minute
triton     three to five kernels per group, for CUDA; the fastest there
"""

import functools
import importlib
import importlib.util
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ....device.buffers import Buffers
from ....errors import RecipeError
from ..draws import Policy

log = logging.getLogger(__name__)

Name = Literal["auto", "kornia", "cpu", "compiled", "triton"]


class Executor(Protocol):
    """Makes the views of one group: (V, B, 3, h, w) of `dtype` on the device."""

    def __call__(
        self,
        policy: Policy,
        canvases: Sequence[Tensor],
        table_VBP: npt.NDArray[np.float32],
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor: ...


class Prepare(Protocol):
    """Uploads a group's canvases and table, and returns what makes its views from them.

    The returned function may be called again and again, for timing and for CUDA graphs. Its views
    are (V, B, 3, h, w) of `dtype`, in [0, 1] before Normalize; float32 ones are within 0.2 of an
    8-bit level of `kornia`'s, half ones within 1 before they are rounded. The canvases are B of
    (H, W, 3) uint8, RGB, each of its own size.
    """

    def __call__(
        self,
        policy: Policy,
        canvases: Sequence[Tensor],
        table_VBP: npt.NDArray[np.float32],
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> Callable[[], Tensor]: ...


def run_prepared(
    prepare: Prepare,
    policy: Policy,
    canvases: Sequence[Tensor],
    table_VBP: npt.NDArray[np.float32],
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The one entry of `compiled` and `triton`: upload, then make the views once."""
    return prepare(policy, canvases, table_VBP, device=device, dtype=dtype)()


def choose(
    name: Name,
    policy: Policy,
    device: torch.device,
    *,
    threads: ThreadPoolExecutor | None = None,
    where: str = "recipe",
) -> Executor:
    """The executor of that name; `auto`: see `fastest`.

    threads: for those that work on the CPU; None: the caller's alone. where: it is named.

    Raises:
        RecipeError: it is not installed, not for this device, or does not know an op.
    """
    if name == "auto":
        name = fastest(policy, device)
    reason = None if name == "kornia" else obstacle(name, policy, device)
    if reason is not None:
        raise RecipeError(f"{where}: run.executor = {name!r}: {reason}, or write executor: auto")
    module = importlib.import_module(f".{name}", __package__)  # some take a second to import
    if name == "kornia":
        return module.execute  # type: ignore[no-any-return]
    if name == "cpu":
        if threads is not None:
            threads.submit(module.load)
        return functools.partial(module.execute, threads=threads, buffers=Buffers())
    return functools.partial(run_prepared, module.prepare)


def fastest(policy: Policy, device: torch.device) -> Name:
    """What `auto` stands for: `triton` on CUDA and `cpu` elsewhere if it can, else `kornia`.

    Says so once per view group, with what is in the way, on the log.
    """
    name: Name = "triton" if device.type == "cuda" else "cpu"
    reason = obstacle(name, policy, device)
    if reason is None:
        log.info("views.%s: executor %s, the fastest on %s", policy.group, name, device.type)
        return name
    log.info("views.%s: executor kornia, not %s: %s", policy.group, name, reason)
    return "kornia"


def obstacle(name: Name, policy: Policy, device: torch.device) -> str | None:
    """Why an executor cannot do a policy on a device, and what to do; None: it can."""
    package, install = {
        "cpu": ("numba", 'pip install "sslpipe[cpu]"'),
        "triton": ("triton", "it comes with torch on Linux"),
    }.get(name, ("torch", ""))
    if importlib.util.find_spec(package) is None:
        return f"{package} is missing; {install}"
    if name == "triton" and device.type != "cuda":
        return f"it needs a CUDA device, this is {device}; use cpu"
    names = importlib.import_module(f".{name}", __package__).unsupported(policy)
    return f"it does not know {', '.join(names)}; leave the op out" if names else None
