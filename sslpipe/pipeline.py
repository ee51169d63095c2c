"""Recipe + shards + device -> an iterable of Batch. Everything is decided first, then done.

    step -> samples                     stream/plan.py ...       decide
    samples -> bytes -> arrays          stream/packed.py ...     do, in threads
    (seed, epoch, uid, view) -> tables  a modality's decider     decide
    arrays + tables -> views            a modality's maker       do, on the device

Over packed shards, the stream of global batches is a function of (manifest, recipe) alone: ranks,
threads, prefetch depth and resuming change nothing.
"""

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from .batch import Batch
from .device.handoff import Mark, find_device, handoff
from .errors import RecipeError, StateError
from .modalities import Raw
from .modalities.parts import (
    batch_spec,
    find_modality,
    make_parts,
    members_of,
    merged,
    parts_of,
    tensors,
)
from .process import cores, process_ranks
from .recipe import Recipe, find_recipe, load_recipe
from .rng import Place
from .stream.batch_decode import BatchDecode
from .stream.open import ReadingRank, Shards, check_world, open_source, remainder_of
from .stream.packed import Packed
from .stream.plan import check_state
from .stream.prefetch import Prefetch
from .stream.quarantine import Quarantine
from .stream.reader import Sample
from .stream.source import Fault, Share

log = logging.getLogger(__name__)
STATE = 2  # version
Raws = tuple[Raw, ...]  # a sample as each modality of the recipe decodes it


def load(
    recipe: str | Path | Recipe,
    *,
    shards: Shards,
    device: str | torch.device | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    quarantine: str | Path | None = None,
) -> "Pipeline":
    """Build a pipeline.

    recipe: a path, or the name of a recipe that ships with the package ("simclr").
    shards: a packed folder or its manifest.json; a mapping name -> folder, mixed by `stream.mix`;
        or any iterable of dicts with `__key__` and raw bytes, such as a webdataset pipeline.
        Of an iterable each rank takes what its own gives: splitting it among ranks is the user's.
    device: where views are made; None: CUDA if there is one, else the CPU.
    rank, world_size: None: from torch.distributed or the launcher's environment, else 0 of 1.
    quarantine: a file where `stream.on_bad: exclude` writes bad samples down, a line of JSON each.

    Raises:
        RecipeError, ShardError: what is wrong with either, before any data is read.
        SslpipeError: this machine has no such device.
    """
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(find_recipe(recipe))
    ranks = process_ranks(rank, world_size)
    return Pipeline(
        loaded,
        shards,
        device=find_device(device),
        rank=ranks.rank,
        world_size=ranks.size,
        quarantine=Path(quarantine) if quarantine else None,
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
    ) -> None:
        check_world(recipe, rank, world_size)
        self.recipe, self.device = recipe, device
        self.rank, self.world_size = rank, world_size
        self.threads = cores() if recipe.run.threads == "auto" else recipe.run.threads
        # one pool for decoding and augmentation: two of them would fight for the cores
        self._threads = ThreadPoolExecutor(self.threads, thread_name_prefix="sslpipe")
        self.parts = parts_of(recipe, device=device, threads=self._threads)
        codec = find_modality(recipe.modality, recipe.path).codec
        reading = ReadingRank(
            rank,
            world_size,
            self._threads,
            self.threads,
            modality=codec.modality,
            payloads=codec.extensions,
            members=members_of(self.parts),
        )
        self.source = open_source(recipe, shards, reading)
        self.spec = batch_spec(recipe, self.parts, world_size=world_size, batches=len(self.source))
        self._load = self._loading()
        self._handoff = handoff(device)
        self._blank = tuple(part.maker.blank for part in self.parts)
        self.loaded = self.reduced = 0  # samples, and those decoded at a smaller scale
        stream = recipe.stream
        self._quarantine = Quarantine(
            quarantine if stream.on_bad == "exclude" else None, max_fraction=stream.max_bad_fraction
        )
        self._shares = Prefetch(self.load_share, depth=recipe.run.prefetch, name="load")
        self._batches = Prefetch(self._make, depth=recipe.run.prefetch, name="augment")
        self._closed = False
        self.step = 0  # batches handed out since the start of the run
        self.wait_seconds = 0.0  # time that the consumer waited for batches

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
            self._require_open()
            start = time.perf_counter()
            batch, faults, mark = self._batches.take(self.step)
            self._handoff.receive(mark, batch.tensors)
            self.wait_seconds += time.perf_counter() - start
            self.step += 1
            self._report(faults, step=batch.step)
            yield batch
        log.info("epoch done; %s", self.summary)

    def _report(self, faults: list[Fault], *, step: int) -> None:
        """Log and count the bad samples of a batch; too many stop the run."""
        for fault in faults:
            log.warning("bad sample (%s): %s", self.recipe.stream.on_bad, fault.reason)
        self._quarantine.report(faults, samples=self.spec.size, step=step)

    def load_share(self, step: int) -> Share[Raws]:
        """This rank's samples of global batch `step`, decoded."""
        self._require_open()
        share = self._load(step)
        raws = [raw for item in share.loaded if item.decoded for raw in item.decoded]
        self.loaded += len(raws)
        self.reduced += sum(tuple(raw.data.shape[: len(raw.extent)]) != raw.extent for raw in raws)
        return share

    def load_sample(self, sample: Sample, epoch: int) -> Raws:
        """One sample, decoded by each modality; a SampleError where one of them cannot."""
        return tuple(part.load(sample, epoch) for part in self.parts)

    @property
    def summary(self) -> str:
        """How often it was of use to know the views before decoding."""
        return f"{self.reduced:,} of {self.loaded:,} samples were decoded at a smaller scale"

    def _loading(self) -> Callable[[int], Share[Raws]]:
        """What decodes as the recipe says: workers one by one, or a device whole shares.

        Raises:
            RecipeError: a device cannot decode what an iterable gives, or several modalities.
        """
        decoders = [part.share_decode for part in self.parts if part.share_decode]
        if not decoders:
            return lambda step: self.source.share(step, self.load_sample)
        device = f"{self.recipe.path}: decode.device = {self.recipe.decode.device!r}"
        if not isinstance(self.source, Packed):
            raise RecipeError(
                f"{device}: what a device cannot decode is read again, which an iterable does not "
                "allow; use packed or indexed shards, or write decode: {device: cpu}"
            )
        if len(self.parts) > 1:
            raise RecipeError(
                f"{device}: decodes recipes of one modality; write decode: {{device: cpu}}"
            )
        return BatchDecode(
            self.source,
            first=self.parts[0].prepare,
            finish=lambda prepared: [
                None if raw is None else (raw,) for raw in decoders[0].finish(prepared)
            ],
            alone=self.load_sample,
        )

    def _make(self, step: int) -> tuple[Batch, list[Fault], Mark | None]:
        """A batch, the bad samples that were met in it, and the mark that it is made."""
        share = self._shares.take(step)
        faults = [fault for item in share.loaded for fault in item.faults]
        with self._handoff.making():
            return self.make_batch(share, step), faults, self._handoff.mark()

    def make_batch(self, share: Share[Raws], step: int) -> Batch:
        """Augment a share: decide the tables, then send all at once, then execute."""
        self._require_open()
        samples = [item.sample for item in share.loaded]
        uids = np.array([sample.uid for sample in samples], dtype=np.int64)
        slots = self.source.slots[: len(uids)]  # all of them but in a short last batch
        place = Place(step, slots, self.spec.global_size)
        raws = [self._blank if item.decoded is None else item.decoded for item in share.loaded]
        columns = list(zip(*raws, strict=True))  # the samples' arrays, by part
        tables = [
            part.decide(column, epochs=share.epochs, uids=uids, place=place)
            for part, column in zip(self.parts, columns, strict=True)
        ]
        labels = torch.tensor([sample.label for sample in samples])
        made, masks, labels = make_parts(
            self.parts, columns, tables, labels, send=self._handoff.send
        )
        return Batch(
            **made._asdict(),
            masks=masks,
            hidden={name: mask.sum(-1) for t in tables for name, mask in t.masks.items()},
            labels=labels,
            params=tensors(merged(table.params for table in tables)),
            uids=torch.from_numpy(uids),
            keys=tuple(sample.key for sample in samples),
            valid=torch.from_numpy(share.valid),
            epoch=int(share.epochs[0]),
            step=step,
        )

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands: the same on all ranks, and for any number of them.

        `exact`, `elastic`: whether resuming gives the same batches, on any number of ranks.
        """
        stream = self.recipe.stream
        return {
            "version": STATE,
            "manifest": self.source.identity,
            "order": f"{stream.order} {stream.lanes} {stream.window} {remainder_of(self.recipe)}",
            "recipe": self.recipe.data_fingerprint,
            "step": self.step,
            "exact": self.source.exact,
            "elastic": self.source.exact,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken, on any number of ranks and threads.

        A stream that is not exact (an iterable) starts anew; steps and epochs count on.

        Raises:
            StateError: the state is of other shards, weights or order, of another recipe, or none.
        """
        self._require_open()
        step = state.get("step") if isinstance(state, dict) else None
        if type(step) is not int or not 0 <= step < 2**31:
            raise StateError(f"stream state: its step is {step!r}; pass what state_dict() returned")
        flat = {k: v if isinstance(v, str | int) else repr(v) for k, v in state.items()}
        check_state(flat, self.state_dict())
        self.step = step
        if not self.source.exact:
            log.warning("stream state: the iterable starts anew; steps go on at %d", step)

    def _require_open(self) -> None:
        """Raise a StateError after `close`."""
        if self._closed:
            raise StateError(f"{self.recipe.path}: the pipeline is closed; load it once more")

    def close(self) -> None:
        """Stop the threads; batches that are out stay whole, and there are no more."""
        self._closed = True
        self._batches.close()
        self._shares.close()
        self._threads.shutdown(cancel_futures=True)
        self.source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
