"""The fast executor for CPUs: sample by sample, each view finished while it is in the cache.

Whole-batch operations are bound by page faults on fresh temporaries. Here a view is made where it
will stay, in its slice of the output, in the sample's own order of operations; gates are branches.
Threads take whole samples: the loops release the GIL. Pixels depend on neither.

The policy becomes a table of numbers (`cpu_program`), which one compiled function goes through
(`cpu_view`; its loops are in `cpu_filters` and `cpu_colour`). The machine code is kept on disk.
"""

import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_int64, c_void_p
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .... import machine_code
from ....device.buffers import Buffers
from .. import ops
from ..draws import Policy
from .cpu_program import program, unsupported

__all__ = ["execute", "load", "unsupported"]

F32 = npt.NDArray[np.float32]
TASKS, LARGEST = 64, 4  # tasks of a batch, samples of a task: a task costs 30 us, a view from 10
ARGUMENTS = (
    c_void_p, c_int64, c_void_p, c_void_p, c_void_p, c_int64, c_void_p, *[c_int64] * 6
)  # fmt: skip
LOADING = threading.Lock()


def load() -> Callable[..., None]:
    """The compiled `cpu_view.views`, loaded once; the first time, compiling takes 10 s of CPU."""
    with LOADING:
        return loaded()


@functools.cache
def loaded() -> Callable[..., None]:
    def compiled() -> str:
        from . import cpu_view  # numba is behind it

        return cpu_view.compiled()

    here = Path(__file__).parent
    sources = [*here.glob("cpu_*.py"), here.parent / "kernels.py"]
    return machine_code.function("sslpipe_views", sources, compiled, ARGUMENTS)


def execute(
    policy: Policy,
    canvases: Sequence[Tensor],
    table_VBP: F32,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    threads: ThreadPoolExecutor | None = None,
    buffers: Buffers | None = None,
) -> Tensor:
    """Make the views of one group.

    canvases: B of (H, W, 3) uint8, RGB, each of its own size, on the CPU.
    threads: who shares the work; None: the caller alone. It must not be a task of theirs.
    buffers: where views go; None: new memory.
    Returns: (V, B, 3, h, w) on `device`, computed in float32 and rounded once, to `dtype`; in
    [0, 1] before Normalize.
    """
    views, batch, columns = table_VBP.shape
    held = [canvas.contiguous() for canvas in canvases]
    sizes_B2 = np.array([canvas.shape[:2] for canvas in held], np.int64).reshape(batch, 2)
    check(policy, held, sizes_B2, table_VBP)
    places_B = np.array([canvas.data_ptr() for canvas in held], np.uint64)
    table, lines = np.ascontiguousarray(table_VBP, np.float32), program(policy)
    # new memory costs 0.1 ms per 224 px view, from torch 0.2: it does not ask for huge pages
    height, width = policy.crop.size
    out_VBCHW = (buffers or Buffers()).empty((views, batch, 3, height, width), np.float32)
    task, make = min(LARGEST, max(1, batch // TASKS)), load()
    arrays = [array.ctypes.data for array in (lines, places_B, sizes_B2, table, out_VBCHW)]

    def work(start: int) -> None:
        make(
            arrays[0], len(lines), *arrays[1:4], columns, arrays[4], views, batch, height, width,
            start, min(start + task, batch),
        )  # fmt: skip

    starts = range(0, batch, task)
    for _ in map(work, starts) if threads is None else threads.map(work, starts):
        pass
    return torch.from_numpy(out_VBCHW).to(device, dtype)


def check(
    policy: Policy, canvases: Sequence[Tensor], sizes_B2: npt.NDArray[np.int64], table_VBP: F32
) -> None:
    """The compiled loops check no bounds: here all is checked that they rely on."""
    batch, columns = table_VBP.shape[1:]
    assert len(canvases) == batch
    assert columns == len(policy.columns)
    assert all(c.dtype == torch.uint8 and c.ndim == 3 and c.shape[2] == 3 for c in canvases)
    box_VB4 = np.trunc(table_VBP[..., policy.steps[0].columns][..., :4])
    corner, sides = box_VB4[..., :2], box_VB4[..., 2:]
    if isinstance(policy.crop, ops.RandomCrop):  # it is padded with zeros, and not resized
        assert (sides == policy.crop.size[::-1]).all()
        return
    inside = (corner >= 0) & (sides >= 1) & (corner + sides <= sizes_B2[:, ::-1])
    assert inside.all(), "a box leaves the canvas"
