"""Contenders on decoded canvases, for gpu_parts: our executors, their kernels alone, and a copy."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median, quantiles

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sslpipe.device.handoff import settle
from sslpipe.modalities.image.draws import Policy
from sslpipe.modalities.image.executors import compiled, kornia, run_prepared

Make = Callable[[], Tensor]
Builder = Callable[[], Make]  # compiles and uploads; a failure is that contender's alone
F32 = npt.NDArray[np.float32]
HALF = torch.bfloat16


def contenders(
    policy: Policy, canvases: Sequence[Tensor], table_VBP: F32, *, device: torch.device
) -> Mapping[str, Builder]:
    """Whole executors upload each time; "kernels" and "graph" have uploaded before.

    "copy" reads the canvases once and writes views of the same size once: the roofline.
    """
    given = (policy, canvases, table_VBP)
    made: dict[str, Builder] = {
        "kornia": lambda: partial(kornia.execute, *given, device=device),
        "copy": lambda: copying(*given, device),
        "compiled": lambda: partial(
            run_prepared, compiled.prepare, *given, device=device, dtype=HALF
        ),
        "compiled kernels": lambda: compiled.prepare(*given, device=device, dtype=HALF),
    }
    if device.type == "cuda":
        from sslpipe.modalities.image.executors import triton  # it is for CUDA alone

        made |= {
            "compiled graph": lambda: captured(compiled.prepare(*given, device=device, dtype=HALF)),
            "triton": lambda: partial(
                run_prepared, triton.prepare, *given, device=device, dtype=HALF
            ),
            "triton kernels": lambda: triton.prepare(*given, device=device, dtype=HALF),
            "triton graph": lambda: captured(triton.prepare(*given, device=device, dtype=HALF)),
        }
    return made


def copying(
    policy: Policy, canvases: Sequence[Tensor], table_VBP: F32, device: torch.device
) -> Make:
    source = torch.cat([canvas.flatten() for canvas in canvases]).to(device)
    rows = table_VBP.shape[0] * table_VBP.shape[1]
    view = torch.zeros(rows, 3, *policy.crop.size, dtype=HALF, device=device)
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


def timed(work: Callable[[], object], *, device: torch.device, repeats: int) -> dict[str, float]:
    """Of one call: first (compiling included), until it returned (host), until it was done."""
    first, _ = once(work, device)
    for _ in range(repeats // 5):
        once(work, device)
    host, done = zip(*(once(work, device)[::-1] for _ in range(repeats)), strict=True)
    return {
        "first_s": first,
        "host_ms": 1e3 * median(host),
        "done_ms": 1e3 * median(done),
        "done_p90_ms": 1e3 * quantiles(done, n=10)[-1],
    }


def once(work: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Seconds until all was done, and until the call returned."""
    settle(device)
    start = time.perf_counter()
    work()
    host = time.perf_counter() - start
    settle(device)
    return time.perf_counter() - start, host
