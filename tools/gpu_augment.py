"""The GPU part of the augmentation benchmark: functions for a script that has canvases and a table.

Needs CUDA. Nothing here has been run on a GPU yet, so there is no figure to quote.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sslpipe.image.draws import Policy
from sslpipe.image.executors import compiled, kornia, triton

Make = Callable[[], Tensor]
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Timing:
    """Of one contender on one batch; times are between CUDA events, so host gaps count."""

    first_seconds: float  # includes compiling
    median_ms: float
    p90_ms: float
    us_per_view: float  # of the median
    peak_gb: float  # allocated above what stood before


def contenders(
    policy: Policy, canvases: Sequence[Tensor], table_VBP: F32, *, device: torch.device
) -> dict[str, Make]:
    """What to time. Whole executors upload each time; "kernels" and "graph" have uploaded before.

    "copy" reads the canvases once and writes views of the same size once: the roofline.
    """
    half = torch.bfloat16
    made: dict[str, Make] = {
        "kornia": lambda: kornia.execute(policy, canvases, table_VBP, device=device)
    }
    for name, executor in (("compiled", compiled), ("triton", triton)):
        if not executor.unsupported(policy):
            kernels = executor.prepare(policy, canvases, table_VBP, device=device, dtype=half)
            made[name] = whole(executor, policy, canvases, table_VBP, device)
            made[f"{name} kernels"] = kernels
            made[f"{name} graph"] = captured(kernels)
    made["copy"] = copying(policy, canvases, table_VBP, device)
    return made


def whole(executor, policy, canvases, table_VBP, device) -> Make:
    return lambda: executor.execute(
        policy, canvases, table_VBP, device=device, dtype=torch.bfloat16
    )


def copying(policy, canvases, table_VBP, device) -> Make:
    source = torch.cat([canvas.flatten() for canvas in canvases]).to(device)
    rows = table_VBP.shape[0] * table_VBP.shape[1]
    view = torch.zeros(rows, 3, *policy.crop.size, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(view)

    def copy() -> Tensor:
        source.clone()
        return target.copy_(view)

    return copy


def captured(make: Make) -> Make:
    """A CUDA graph of it; replaying costs the host one launch."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles and allocates before the capture
        for _ in range(3):
            make()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = make()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay


def time(make: Make, *, views: int, repeats: int = 100) -> Timing:
    """Time something that makes this many views."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    first = milliseconds(make) / 1000
    for _ in range(10):
        make()
    taken = np.array([milliseconds(make) for _ in range(repeats)])
    median = float(np.median(taken))
    return Timing(
        first_seconds=first,
        median_ms=median,
        p90_ms=float(np.quantile(taken, 0.9)),
        us_per_view=median * 1000 / views,
        peak_gb=(torch.cuda.max_memory_allocated() - before) / 1e9,
    )


def milliseconds(make: Make) -> float:
    """One run, between two events."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    make()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)
