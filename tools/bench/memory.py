"""How much memory a call, or a process and its workers, takes. Linux, and CUDA devices."""

import contextlib
import ctypes
import gc
import warnings
from collections.abc import Callable
from pathlib import Path

import torch


def peak_memory(work: Callable[[], object], device: torch.device) -> float:
    """MB above what was held before, of a call that follows two to warm up."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        work()
        work()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - held) / 1e6
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    held = status("VmRSS")
    work()
    return status("VmHWM") - held


def status(field: str) -> float:
    """A size of this process in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1e3


def tree_memory(pid: int) -> float:
    """MB of a process and all below it, shared pages counted once; it takes 10 to 50 ms of CPU."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        own = next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1e3
        # a child belongs to the thread that started it, which need not be the main one
        tasks = [task.read_text().split() for task in Path(f"/proc/{pid}/task").glob("*/children")]
        return own + sum(tree_memory(int(child)) for children in tasks for child in children)
    return 0.0  # it has just ended
