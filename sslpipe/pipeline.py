"""Recipe + shards + device -> an iterable of Batch. Everything is decided first, then done.

    positions -> samples (uids)         stream/order.py       decide
    bytes -> canvases                   stream/reader.py      do, in threads
    (seed, epoch, uid, view) -> tables  image/draws.py ...    decide
    canvases + tables -> views          image/executors/      do, on the device

The stream of global batches is a function of (manifest, recipe) alone: ranks, threads, prefetch
depth and resuming change nothing.
"""

import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from .batch import Batch, BatchSpec
from .errors import RecipeError, StateError
from .image.decode import decode
from .image.views import Views
from .recipe import Recipe, find_recipe, load_recipe
from .rng import Place
from .shards import index as shard_format
from .shards.manifest import Manifest, open_manifest
from .stream import order
from .stream.ahead import Ahead
from .stream.loader import Loader, Share
from .stream.reader import Reader

log = logging.getLogger(__name__)
T = TypeVar("T")


def load(
    recipe: str | Path | Recipe,
    *,
    shards: str | Path,
    device: str | torch.device | None = None,
    rank: int | None = None,
    world_size: int | None = None,
) -> "Pipeline":
    """Build a pipeline.

    recipe: a path, or the name of a recipe that ships with the package ("simclr").
    shards: a packed folder or its manifest.json.
    device: where views are made; None: CUDA if there is one, else the CPU.
    rank, world_size: None: from torch.distributed or the launcher's environment, else 0 of 1.

    Raises:
        RecipeError, ShardError: what is wrong with either, before any data is read.
    """
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(find_recipe(recipe))
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    found = world(rank, world_size)
    return Pipeline(
        loaded, open_manifest(shards), device=chosen, rank=found[0], world_size=found[1]
    )


def world(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """(rank, world size) as given, or of torch.distributed, or of the launcher's environment."""
    if dist.is_available() and dist.is_initialized():
        found = dist.get_rank(), dist.get_world_size()
    else:
        found = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    return found[0] if rank is None else rank, found[1] if world_size is None else world_size


class Pipeline:
    """Batches of one rank. Iterating yields the rest of the current epoch: `len` batches in all.

    What does not fill the last batch of an epoch opens the next one: nothing is dropped.
    """

    def __init__(
        self,
        recipe: Recipe,
        manifest: Manifest,
        *,
        device: torch.device,
        rank: int,
        world_size: int,
    ) -> None:
        check_world(recipe, rank, world_size)
        self.recipe, self.manifest, self.device = recipe, manifest, device
        self.rank, self.world_size = rank, world_size
        self.threads = thread_count(recipe)
        # one pool for decoding and augmentation: two of them would fight for the cores
        self._threads = ThreadPoolExecutor(self.threads, thread_name_prefix="sslpipe")
        self.views = Views(
            recipe.views,
            recipe.masks,
            recipe.targets,
            seed=recipe.stream.seed,
            device=device,
            executor=recipe.run.executor,
            threads=self._threads,
        )
        self.spec = BatchSpec(
            recipe.stream.batch_size // world_size,
            recipe.stream.batch_size,
            self.views.view_specs,
            self.views.mask_specs,
            self.views.target_specs,
            sum(shard.samples for shard in manifest.shards),
        )
        self.order = order_of(recipe, manifest)
        self._reader = Reader([manifest.root / s.file for s in manifest.shards], shard_format)
        self._loader = self.loader(canvas_decoder(recipe))
        self._shares = Ahead(self.load_share, depth=recipe.run.prefetch, name="load")
        self._batches = Ahead(self._make, depth=recipe.run.prefetch, name="augment")
        self.step = 0  # batches handed out since the start of the run
        self.wait_seconds = 0.0  # time that the consumer waited for batches
        self.replaced = 0  # bad samples that were replaced so far, on this rank

    def __len__(self) -> int:
        """Batches per epoch, the same on every rank."""
        samples, size = self.order.samples, self.spec.global_size
        if self.recipe.stream.order == "sequential":
            return math.ceil(samples / size)
        return max(1, samples // size)

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the current epoch."""
        end = (self.step // len(self) + 1) * len(self)
        while self.step < end:
            start = time.perf_counter()
            batch, faults = self._batches.take(self.step)
            self.wait_seconds += time.perf_counter() - start
            self.step += 1
            self._report(faults)
            yield batch

    def _report(self, faults: list[str]) -> None:
        """Count and log the samples that were replaced in a batch."""
        self.replaced += len(faults)
        for fault in faults:
            log.warning("replaced a bad sample: %s", fault)

    def loader(self, decode: Callable[[bytes], T]) -> Loader[T]:
        """Threads that read, check and decode the samples of this pipeline's stream."""
        on_bad = self.recipe.stream.on_bad
        return Loader(
            self._reader,
            self.order,
            decode,
            on_bad=on_bad,
            threads=self._threads,
            count=self.threads,
        )

    def positions(self, step: int) -> npt.NDArray[np.int64]:
        """This rank's positions of global batch `step`."""
        positions = order.owned(
            step,
            batch_size=self.spec.global_size,
            lanes=self.order.stride,
            rank=self.rank,
            world_size=self.world_size,
        )
        if self.recipe.stream.order == "sequential":
            positions = positions[positions < self.order.samples]
        return positions

    def load_share(self, step: int) -> Share[Tensor]:
        """This rank's samples of global batch `step` as (H, W, 3) uint8 canvases."""
        return self._loader(self.positions(step))

    def _make(self, step: int) -> tuple[Batch, list[str]]:
        """A batch, and the bad samples that were replaced in it."""
        share = self._shares.take(step)
        return self.make_batch(share, step), [f for item in share.loaded for f in item.faults]

    def make_batch(self, share: Share[Tensor], step: int) -> Batch:
        """Augment a share: decide the tables, then execute them on the device."""
        uids = np.array([item.sample.uid for item in share.loaded], dtype=np.int64)
        slots = self.positions(step) - step * self.spec.global_size
        made = self.views.make(
            [item.decoded for item in share.loaded],
            epochs=share.epochs,
            uids=uids,
            place=Place(step, slots, self.spec.global_size),
        )
        labels = torch.tensor([item.sample.label for item in share.loaded])
        return Batch(
            views=made.views,
            masks=made.masks,
            hidden=made.hidden,
            targets=made.targets,
            labels=labels.to(self.device),
            params=made.params,
            uids=torch.from_numpy(uids),
            keys=tuple(item.sample.key for item in share.loaded),
            valid=torch.ones(len(uids), dtype=torch.bool),
            epoch=int(share.epochs[0]),
            step=step,
        )

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands: the same on all ranks, and for any number of them."""
        return {
            "version": 1,
            "manifest": self.manifest.fingerprint,
            "recipe": self.recipe.data_fingerprint,
            "step": self.step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken, on any number of ranks and threads.

        Raises:
            StateError: the state is of other shards or of another recipe.
        """
        mine = self.state_dict()
        for name, what in (("version", "format"), ("manifest", "shards"), ("recipe", "recipe")):
            if state.get(name) != mine[name]:
                raise StateError(
                    f"stream state: its {what} are {state.get(name)!r}, this pipeline's "
                    f"{mine[name]!r}; resume with the same {what}, or start a new run"
                )
        self.step = int(state["step"])

    def close(self) -> None:
        """Stop the threads."""
        self._batches.close()
        self._shares.close()
        self._threads.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def order_of(recipe: Recipe, manifest: Manifest) -> order.Order:
    """The order of a recipe's stream over the shards of a manifest."""
    stream = recipe.stream
    return order.build(
        np.array([shard.samples for shard in manifest.shards], dtype=np.int64),
        kind=stream.order,
        seed=stream.seed,
        batch_size=stream.batch_size,
        lanes=stream.lanes,
        window=stream.window,
    )


def canvas_decoder(recipe: Recipe) -> Callable[[bytes], Tensor]:
    """Bytes -> (H, W, 3) uint8."""
    size = recipe.decode.size
    return lambda data: torch.from_numpy(decode(data, size=size))


def thread_count(recipe: Recipe) -> int:
    """Decoding threads; auto is one per core that this process may use."""
    if recipe.run.threads == "auto":
        return (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
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
