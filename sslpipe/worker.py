"""Which rank of how many this process is, and with which threads it reads."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch.distributed as dist

from .errors import RecipeError
from .recipe import Recipe
from .shards.make.pools import cores
from .stream import order


@dataclass(frozen=True, slots=True)
class Worker:
    """Which rank reads, and with which threads."""

    rank: int
    world_size: int
    threads: ThreadPoolExecutor
    count: int  # of threads

    def slots(self, batch_size: int, lanes: int) -> order.I64:
        """This rank's places in every batch."""
        return order.slots(
            batch_size=batch_size, lanes=lanes, rank=self.rank, world_size=self.world_size
        )


def world(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """(rank, world size) as given, or of torch.distributed, or of the launcher's environment."""
    if dist.is_available() and dist.is_initialized():
        found = dist.get_rank(), dist.get_world_size()
    else:
        found = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    return found[0] if rank is None else rank, found[1] if world_size is None else world_size


def thread_count(recipe: Recipe) -> int:
    """Decoding threads; auto is one per core that this process may use."""
    if recipe.run.threads == "auto":
        return cores()
    return recipe.run.threads


def check_world(recipe: Recipe, rank: int, world_size: int) -> None:
    """Every rank gets the same number of samples of every batch.

    Raises:
        RecipeError: the batch does not divide, or there is no such rank.
    """
    if not 0 <= rank < world_size:
        raise RecipeError(f"rank = {rank} is not in [0, {world_size}); check the launcher")
    if recipe.stream.batch_size % world_size:
        raise RecipeError(
            f"{recipe.path}: stream.batch_size = {recipe.stream.batch_size} is not divisible by "
            f"the {world_size} ranks; choose a multiple of {world_size}"
        )
