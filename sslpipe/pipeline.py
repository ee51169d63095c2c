"""Recipe + shards + device -> an iterable of Batch. Everything is decided first, then done.

    step -> samples                     stream/plan.py ...       decide
    samples -> bytes -> arrays          modalities/loading.py    do, in worker processes
    (seed, epoch, uid, view) -> tables  a modality's decider     decide
    arrays + tables -> views            a modality's maker       do, on the device

Over packed shards, the stream of global batches is a function of (manifest, recipe) alone: ranks,
workers, prefetch depth, resuming and workers that die change nothing.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch

from . import compiled_draws
from .batch import Batch
from .device.handoff import Mark, find_device, handoff
from .errors import RecipeError, StateError
from .modalities import Tables
from .modalities.crews import shares_waiting, worker_count
from .modalities.finding import modality_of
from .modalities.loading import open_loading, over_stored
from .modalities.making import make_batch
from .modalities.parts import batch_spec, members_of, parts_of, units_of
from .process import cores, process_ranks
from .recipe import Recipe, load_recipe
from .rng import Place
from .stream.checks import check_world, remainder_of
from .stream.open_source import ReadingRank, Shards, open_source
from .stream.plan import checked_step
from .stream.prefetch import Observer, Prefetch
from .stream.quarantine import Quarantine
from .stream.source import Fault, Share

log = logging.getLogger(__name__)
STATE = 2  # version


def load(
    recipe: str | Path | Recipe,
    *,
    shards: Shards,
    device: str | torch.device | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    quarantine: str | Path | None = None,
    epochs: int | None = None,
    overrides: Sequence[str] = (),
) -> "Pipeline":
    """Build a pipeline.

    recipe: a path, or the name of a recipe that ships with the package ("simclr").
    overrides: settings of it, such as "stream.batch_size=64"; a Recipe has them already.
    shards: a packed folder, its manifest.json or a Manifest; a mapping name -> folder, mixed by
        `stream.mix`; or any iterable of dicts with `__key__` and raw bytes, as of webdataset. Of an
        iterable each rank takes what its own gives: splitting it among ranks is the user's.
    device: where views are made; None: CUDA if there is one, else the CPU.
    rank, world_size: None: from torch.distributed or the launcher's environment, else 0 of 1.
    quarantine: a file where `stream.on_bad: exclude` writes bad samples down, a line of JSON each.
    epochs: how many of them will be asked for, from the first on, if that is known: nothing that
        lies behind them is decoded ahead. Whoever asks for more gets it, and waits for it.

    Raises:
        RecipeError, ShardError: what is wrong with either, before any data is read.
        SslpipeError: this machine has no such device.
    """
    if isinstance(recipe, Recipe) and overrides:
        raise RecipeError(f"{recipe.path}: overrides belong to load_recipe, which made this recipe")
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides=overrides)
    ranks = process_ranks(rank, world_size)
    return Pipeline(
        loaded,
        shards,
        device=find_device(device),
        rank=ranks.rank,
        world_size=ranks.size,
        quarantine=Path(quarantine) if quarantine else None,
        epochs=epochs,
    )


class Pipeline:
    """Batches of one rank. Iterating yields the rest of the current epoch: `len` batches in all.

    By default, what does not fill the last batch of an epoch opens the next one.
    """

    def __init__(
        self,
        recipe: Recipe,
        shards: Shards,
        *,
        device: torch.device,
        rank: int,
        world_size: int,
        quarantine: Path | None = None,
        epochs: int | None = None,
    ) -> None:
        check_world(recipe, rank, world_size)
        self.recipe, self.device = recipe, device
        self.rank, self.world_size = rank, world_size
        self.threads = cores() if recipe.run.threads == "auto" else recipe.run.threads
        self._threads = ThreadPoolExecutor(self.threads, thread_name_prefix="sslpipe")
        compiled_draws.prepare()
        self.parts = parts_of(recipe, device=device, threads=self._threads)
        codec = modality_of(recipe).codec
        reading = ReadingRank(
            rank, world_size,
            modality=codec.modality, payloads=codec.extensions, members=members_of(self.parts),
            layout=next(filter(None, (part.layout for part in self.parts)), None),
            buckets=next(filter(None, (part.buckets for part in self.parts)), None),
        )  # fmt: skip
        self.units = units_of(self.parts)  # what rates are of, for people
        self.source = open_source(recipe, shards, reading)
        self.spec = batch_spec(recipe, self.parts, world_size=world_size, batches=len(self.source))
        self.parts = over_stored(self.parts, self.source)
        # processes that decode; or 0
        count = self.workers = worker_count(recipe, self.source, self.parts)
        self.loading = open_loading(recipe, self.source, self.parts, device=device, count=count)
        self.handoff = handoff(device)
        stream, depth = recipe.stream, recipe.run.prefetch
        self._quarantine = Quarantine(
            quarantine if stream.on_bad == "exclude" else None, max_fraction=stream.max_bad_fraction
        )
        waiting, end = shares_waiting(count, depth), epochs and epochs * len(self.source)
        self._end = end  # the step that will not be asked for; None: not known
        self._shares = Prefetch(self._ahead, depth=waiting, name="load", end=end)
        self._batches = Prefetch(self._make, depth=depth, name="augment", end=end)
        self._closed, self._pid, self._taking = False, os.getpid(), threading.Lock()
        self.step, self.wait_seconds = 0, 0.0  # batches handed out; time that they were waited for
        self.observers: list[Observer] = []  # such as sslpipe.watch

    def __len__(self) -> int:
        """Batches per epoch, the same on every rank."""
        return len(self.source)

    @property
    def replaced(self) -> int:
        """Bad samples that were met so far on this rank, and replaced or masked."""
        return self._quarantine.total

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the current epoch."""
        end = (self.step // len(self) + 1) * len(self)
        while self.step < end:
            batch, faults, samples = self._next()
            self._report(faults, samples, step=batch.step)
            yield batch
        log.info("epoch done; %s", self.summary or "no sample was decoded in part")

    def _next(self) -> tuple[Batch, list[Fault], int]:
        """The next batch, the bad samples that were met in it, and of how many they are.

        Raises:
            StateError: another thread is at it, too.
        """
        self._require_open()
        if not self._taking.acquire(blocking=False):
            raise StateError(
                f"{self.recipe.path}: two threads iterate over the pipeline at once; iterate in "
                "one and hand the batches on"
            )
        try:
            for observer in self.observers:
                observer.asked()
            start = time.perf_counter()
            batch, faults, samples, mark = self._batches.take(self.step)
            self.handoff.receive(mark, batch.tensors)
            self.wait_seconds += time.perf_counter() - start
            self.step += 1
            for observer in self.observers:
                observer.given()
        finally:
            self._taking.release()
        return batch, faults, samples

    def _report(self, faults: list[Fault], samples: int, *, step: int) -> None:
        """Log and count the bad samples of a batch; too many stop the run."""
        for fault in faults:
            log.warning("bad sample (%s): %s", self.recipe.stream.on_bad, fault.reason)
        self._quarantine.report(faults, samples=samples, step=step)

    def load_share(self, step: int) -> Share:
        """This rank's samples of global batch `step`, decoded."""
        self._require_open()
        return self.loading.load(step)

    def _ahead(self, step: int) -> Share:
        """The same, for steps that follow each other: workers are at the next ones already."""
        self._require_open()
        return self.loading.load_ahead(step, end=self._end)

    @contextmanager
    def resting(self) -> Iterator[int]:
        """Have nothing made ahead in here; gives how many batches are. They come as ever."""
        ready = self._batches.rest()
        self._shares.rest()
        try:
            yield ready
        finally:
            self._shares.go_on()
            self._batches.go_on()

    @property
    def summary(self) -> str:
        """How often it was of use to know the views before decoding; "": it never was."""
        return self.loading.summary

    def _make(self, step: int) -> tuple[Batch, list[Fault], int, Mark | None]:
        """A batch, the bad ones of its samples, how many these are, the mark that it is made."""
        share = self._shares.take(step)
        with self.handoff.making():
            batch, mark = self.make_batch(share, step), self.handoff.mark()
        return batch, [*share.faults], share.samples, mark

    def make_batch(self, share: Share, step: int) -> Batch:
        """Augment a share: decide the tables, then send all at once, then execute."""
        self._require_open()
        tables = self.decide(share, step, length=self.source.row_length(step))
        return make_batch(self.parts, share, tables, step=step, handoff=self.handoff)

    def decide(self, share: Share, step: int, *, length: int) -> list[Tables]:
        """The tables of each part for a share of rows of `length`, whatever was drawn ahead."""
        place = Place(
            step, lambda: self.source.slots_at(step)[: share.rows],  # all but in a short last batch
            self.spec.global_size, share.segments, length,
        )  # fmt: skip
        return [
            part.decide(column, epochs=share.epochs, uids=share.uids, place=place, drawn=drawn)
            for part, column, drawn in zip(
                self.parts, share.columns, share.drawn or [None] * len(self.parts), strict=True
            )
        ]

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands: the same on all ranks, and for any number of them.

        `exact`, `elastic`: whether resuming gives the same batches, on any number of ranks.
        """
        stream, files = self.recipe.stream, [part.files for part in self.parts if part.files]
        return {
            "version": STATE,
            "manifest": self.source.identity,
            "order": f"{stream.order} {stream.lanes} {stream.window} {remainder_of(self.recipe)}",
            "recipe": " ".join([self.recipe.data_fingerprint, *files]),
            "step": self.step,
            "exact": self.source.exact,
            "elastic": self.source.exact,
            **self.source.anchor(self.step),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken, on any number of ranks and threads.

        A stream that is not exact (an iterable) starts anew; steps and epochs count on.

        Raises:
            StateError: the state is of other shards, weights or order, of another recipe, or none.
        """
        self._require_open()
        self.step = checked_step(state, self.state_dict())
        self.source.resume(state)

    def _require_open(self) -> None:
        """Raise a StateError after `close`, and in a process that was forked since."""
        if self._closed:
            raise StateError(f"{self.recipe.path}: the pipeline is closed; load it once more")
        if os.getpid() != self._pid:
            raise StateError(
                f"{self.recipe.path}: the pipeline was made in another process; load one in each "
                "process that iterates"
            )

    def close(self) -> None:
        """Stop the threads; batches that are out stay whole, and there are no more."""
        self._closed = True
        if os.getpid() != self._pid:
            return  # its threads, workers and memory are the other process's
        self._batches.close()
        self._shares.close()
        self.handoff.close()
        self.loading.close()
        self._threads.shutdown(cancel_futures=True)
        self.source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
