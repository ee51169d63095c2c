"""The process group of a distributed run, and the device of each of its processes."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from ..process import Ranks, launcher_ranks


@contextmanager
def start_world(kind: str) -> Iterator[Ranks]:
    """Join torchrun's process group (NCCL on `cuda`, else Gloo) and leave it at the end."""
    world = launcher_ranks(os.environ)
    device = device_of(world, kind)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world.size == 1:
        yield world
        return
    if device.type == "cuda":
        dist.init_process_group("nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    try:
        yield world
        dist.barrier()  # nobody leaves while another rank still saves
    finally:
        gc.collect()  # DDP lies in reference cycles; what it holds of the group must go first
        dist.destroy_process_group()


def device_of(ranks: Ranks, kind: str) -> torch.device:
    """`cuda` is the GPU of this process; everything else is itself."""
    return torch.device("cuda", ranks.local_rank) if kind == "cuda" else torch.device(kind)
