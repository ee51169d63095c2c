"""Which process of how many this is, and the process group of a distributed run."""

import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch
import torch.distributed as dist


@dataclass(frozen=True, slots=True)
class World:
    """This process: `rank` of `size`, and its place on the machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def detect(cls, environ: Mapping[str, str]) -> Self:
        """Read the variables that torchrun sets; one process without them."""
        return cls(
            rank=int(environ.get("RANK", 0)),
            size=int(environ.get("WORLD_SIZE", 1)),
            local_rank=int(environ.get("LOCAL_RANK", 0)),
        )

    def device(self, kind: str) -> torch.device:
        """`cuda` is the GPU of this process; everything else is itself."""
        return torch.device("cuda", self.local_rank) if kind == "cuda" else torch.device(kind)


@contextmanager
def start_world(kind: str) -> Iterator[World]:
    """Join torchrun's process group (NCCL on `cuda`, else Gloo) and leave it at the end."""
    world = World.detect(os.environ)
    device = world.device(kind)
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
