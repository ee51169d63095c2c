"""The stream alone: checked bytes of a packed set, exact and elastic, for any framework.

No torch is imported, nothing is decoded: batches are lists of `Sample`, whose bytes JAX, TensorFlow
or plain NumPy turn into what they need. Order, split among ranks and substitutes of bad samples are
those of `sslpipe.load` with the same seed and batch size.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np
import yaml

from ..errors import SampleError
from ..process import process_ranks
from ..recipe import Recipe, parse_recipe
from ..shards.manifest import Manifest, open_manifest
from .checks import check_world, remainder_of
from .open_source import ReadingRank, single
from .packed import Packed, Wants
from .plan import checked_step
from .prefetch import Prefetch
from .reader import Sample, read_sample
from .records import wanted
from .source import SUBSTITUTES

STATE = 1  # version
READERS = 8  # threads; reading waits for disks and networks, and CRC-32 releases the lock


class SampleStream:
    """Batches of one rank: iterating yields the rest of the current epoch, `len` batches in all.

    A batch is a list of `Sample`: uid, key, label (-1: none), data and members by extension.
    """

    def __init__(
        self, recipe: Recipe, manifest: Manifest, *, rank: int, world_size: int, prefetch: int
    ) -> None:
        check_world(recipe, rank, world_size)
        self.recipe, self.rank, self.world_size = recipe, rank, world_size
        self.classes = manifest.classes
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="sslpipe")
        reading = ReadingRank(rank, world_size, self._threads, modality=manifest.modality)
        self.source: Packed = single(recipe, manifest, reading)
        self._shares = Prefetch(self._load, depth=prefetch, name="read")
        self.step = 0  # batches handed out since the start of the run

    def __len__(self) -> int:
        """Batches per epoch, the same on every rank."""
        return len(self.source)

    def __iter__(self) -> Iterator[list[Sample]]:
        """The rest of the current epoch.

        Raises:
            SampleError: a sample is bad, and `on_bad` is raise, or too many follow each other.
        """
        end = (self.step // len(self) + 1) * len(self)
        while self.step < end:
            batch = self._shares.take(self.step)
            self.step += 1
            yield batch

    def _load(self, step: int) -> list[Sample]:
        wants = self.source.wants(step)
        return list(self._threads.map(lambda n: self._sample(wants, n), range(len(wants))))

    def _sample(self, wants: Wants, place: int) -> Sample:
        """One sample, or the next good one of its lane."""
        mine = wants.at(np.array([place]))
        for attempt in range(SUBSTITUTES):
            found = self.source.substitutes(mine, attempt) if attempt else mine
            try:
                return self._read(found)
            except SampleError:
                if self.recipe.stream.on_bad == "raise":
                    raise
        raise SampleError(
            f"{self.recipe.path}: {SUBSTITUTES} bad samples follow each other; run `sslpipe verify`"
        )

    def _read(self, found: Wants) -> Sample:
        corpus = self.source.corpora[int(found.corpora[0])]
        shard, row = int(found.shards[0]), int(found.rows[0])
        tar = corpus.store.open(shard)
        place = wanted(tar.index, row, file=corpus.files[shard], members=tar.index.extensions)
        return read_sample(tar, place)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands: the same on all ranks, and for any number of them."""
        stream = self.recipe.stream
        return {
            "version": STATE,
            "manifest": self.source.identity,
            "order": f"{stream.order} {stream.lanes} {stream.window} {remainder_of(self.recipe)}",
            "recipe": f"{stream.batch_size} samples, seed {stream.seed}, {stream.on_bad}",
            "step": self.step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken, on any number of ranks.

        Raises:
            StateError: the state is of other shards or settings, or none.
        """
        self.step = checked_step(state, self.state_dict())

    def close(self) -> None:
        """Stop the threads and close the tars; there are no more batches."""
        self._shares.close()
        self._threads.shutdown(cancel_futures=True)
        self.source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_samples(
    shards: str | Path | Manifest,
    section: Mapping[str, Any],
    *,
    rank: int | None,
    world_size: int | None,
    prefetch: int,
) -> SampleStream:
    """What `sslpipe.stream.open` does; `section`: of a recipe.

    Raises:
        RecipeError: the section breaks the schema, or does not suit the shards.
    """
    manifest = shards if isinstance(shards, Manifest) else open_manifest(shards)
    ranks = process_ranks(rank, world_size)
    text = yaml.safe_dump({"modality": manifest.modality, "stream": dict(section), "views": {}})
    recipe = parse_recipe(text, path="sslpipe.stream.open", seen=False)
    return SampleStream(recipe, manifest, rank=ranks.rank, world_size=ranks.size, prefetch=prefetch)
