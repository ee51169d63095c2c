"""The compiled executor: one upload, then one Inductor graph of planar ops per view group.

On CUDA the graph is compiled (fullgraph, static shapes) at the first batch of each kind, which
takes a minute; elsewhere the same functions run uncompiled, which is for tests. No device value is
read by the host: what the graph is specialised to (op settings, a bound on the taps, the size of
the buffer) is known from the table and the canvases.

Tested on the CPU, uncompiled and with Inductor's C++ backend, and by `test_compiled.py` on CUDA.
"""

import functools
import inspect
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ....device import arena
from ..draws import Policy
from . import planar
from .planar import unsupported
from .planar_crop import tap_count

__all__ = ["prepare", "unsupported"]

GRAPHS = 64  # kinds of batch (bytes, taps, dtype) of all groups; dynamo's own limit is 8


def prepare(
    policy: Policy,
    canvases: Sequence[Tensor],
    table_VBP: npt.NDArray[np.float32],
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Callable[[], Tensor]:
    """Upload, and return what makes the views: see `executors.Prepare`."""
    make = graph(policy, tap_count(policy, table_VBP), dtype, device.type)
    inputs = arena.upload(canvases, table_VBP, device=device).tensors
    views, batch, _ = table_VBP.shape

    def run() -> Tensor:
        views_RCHW = make(*inputs)
        return views_RCHW.reshape(views, batch, *views_RCHW.shape[1:])

    return run


@functools.lru_cache(maxsize=GRAPHS)
def graph(policy: Policy, taps: int, dtype: torch.dtype, device_type: str) -> planar.Graph:
    """The policy's function, compiled for CUDA."""
    chain = planar.chain(policy, taps, dtype)
    if device_type != "cuda":
        return chain
    # one code object serves all groups, and dynamo gives up after 8 variants of one; older torch
    # (2.11) can only be told so for the whole process
    limits = {"isolate_recompiles": True, "recompile_limit": GRAPHS}
    if not limits.keys() <= inspect.signature(torch.compile).parameters.keys():
        torch._dynamo.config.recompile_limit = max(GRAPHS, torch._dynamo.config.recompile_limit)
        limits = {}
    return torch.compile(  # type: ignore[no-any-return,call-overload]
        chain, fullgraph=True, dynamic=False, **limits
    )
