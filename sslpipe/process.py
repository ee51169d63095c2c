"""This process among others: its rank of how many, and the CPU cores that it may use."""

import os
from collections.abc import Mapping
from typing import NamedTuple

import torch.distributed as dist


class Ranks(NamedTuple):
    """This process among those of a run: `rank` in [0, size), and its number on its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0


def group_ranks() -> Ranks:
    """Ask torch.distributed's default group for the rank; 0 of 1 where none is initialised."""
    if dist.is_available() and dist.is_initialized():
        return launcher_ranks(os.environ)._replace(rank=dist.get_rank(), size=dist.get_world_size())
    return Ranks()


def launcher_ranks(environ: Mapping[str, str]) -> Ranks:
    """Read what torchrun says in RANK, WORLD_SIZE and LOCAL_RANK; 0 of 1 without them."""
    return Ranks(
        rank=int(environ.get("RANK", 0)),
        size=int(environ.get("WORLD_SIZE", 1)),
        local_rank=int(environ.get("LOCAL_RANK", 0)),
    )


def process_ranks() -> Ranks:
    """Find the rank in the process group if there is one, else in what the launcher started."""
    if dist.is_available() and dist.is_initialized():
        return group_ranks()
    return launcher_ranks(os.environ)


def cores() -> int:
    """Count the CPU cores that this process may use, which a container may make fewer."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
