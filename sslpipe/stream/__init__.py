"""Data in motion: which samples come, and their bytes; `open` gives the stream alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # workers import this package, and wait for nothing
    from pathlib import Path

    from ..shards.manifest import Manifest
    from .samples import SampleStream


def open(  # noqa: A001  (sslpipe.stream.open reads as it is meant)
    shards: str | Path | Manifest,
    *,
    batch_size: int,
    seed: int = 0,
    order: Literal["lanes", "global", "sequential"] = "lanes",
    remainder: Literal["wrap", "drop", "short"] | None = None,
    on_bad: Literal["raise", "replace"] = "replace",
    rank: int | None = None,
    world_size: int | None = None,
    prefetch: int = 2,
) -> SampleStream:
    """Open the checked raw samples of a packed set as an exact, elastic iterator of batches.

    batch_size: global, over all ranks. remainder: what does not fill an epoch's last batch; None:
    it opens the next epoch, but `sequential` ends with a short batch. rank, world_size: None: as
    the launcher says. prefetch: batches read ahead, which changes none.

    Raises:
        RecipeError: a setting does not exist or does not suit the shards.
        ShardError: shards that are missing, cut, or empty.
    """
    from .samples import open_samples

    section = {
        "batch_size": batch_size, "seed": seed, "order": order, "on_bad": on_bad,
        **({"remainder": remainder} if remainder else {}),
    }  # fmt: skip
    return open_samples(shards, section, rank=rank, world_size=world_size, prefetch=prefetch)
