"""Samples of a global batch: located, read, checked and decoded in threads; bad ones replaced.

It does not know what a decoded sample is: `decode` is the modality's.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from typing import Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import SampleError, ShardError
from .order import Order
from .reader import Reader, Sample

T = TypeVar("T")
TASK = 16  # samples per task at most
TASKS_PER_THREAD = 4  # per batch at least, so that all threads end at about the same time
SUBSTITUTES = 100  # bad samples in a row before a run gives up


@dataclass(frozen=True, slots=True)
class Loaded(Generic[T]):
    """One decoded sample, without its bytes; `faults` tell of bad samples that it stands in for."""

    sample: Sample
    decoded: T
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Share(Generic[T]):
    """One rank's share of a global batch, in the order of its positions."""

    epochs: npt.NDArray[np.int64]
    loaded: list[Loaded[T]]


class Loader(Generic[T]):
    """`loader(positions)` -> Share. Badness is a property of the bytes, so the substitute of a bad
    sample, the next good one of its lane, is the same on every topology.
    """

    def __init__(
        self,
        reader: Reader,
        order: Order,
        decode: Callable[[bytes], T],
        *,
        on_bad: Literal["raise", "replace"],
        threads: ThreadPoolExecutor,
        count: int,
    ) -> None:
        self._reader, self._order, self._decode, self._on_bad = reader, order, decode, on_bad
        self._order_lock = threading.Lock()  # the order keeps the tables of the last epoch
        self._threads, self._count = threads, count

    def __call__(self, positions: npt.NDArray[np.int64]) -> Share[T]:
        """Load the samples at these positions of the stream.

        Raises:
            SampleError: one is bad and the policy is `raise`.
            ShardError: a shard is gone, or too many samples in a row are bad.
        """
        with self._order_lock:
            located = self._order.locate(positions)
        places = list(
            zip(positions.tolist(), located.shards.tolist(), located.rows.tolist(), strict=True)
        )
        size = max(1, min(TASK, len(places) // (TASKS_PER_THREAD * self._count)))
        tasks = [places[start : start + size] for start in range(0, len(places), size)]
        return Share(
            located.epochs, list(chain.from_iterable(self._threads.map(self._task, tasks)))
        )

    def _task(self, places: list[tuple[int, int, int]]) -> list[Loaded[T]]:
        """Several samples in one thread: handing over each of them costs more than reading it."""
        return [self._load(*place) for place in places]

    def _load(self, position: int, shard: int, row: int) -> Loaded[T]:
        """The sample, or the first good one of those that may stand in for it."""
        faults: list[str] = []
        for attempt in range(1, SUBSTITUTES + 1):
            try:
                sample = self._reader.read(shard, row)
                decoded = self._decoded(sample, shard)
                # bytes kept to the end of a batch take new memory each: 0.05 ms per 100 KB
                return Loaded(replace(sample, data=b""), decoded, tuple(faults))
            except SampleError as error:
                if self._on_bad == "raise":
                    raise
                faults.append(str(error))
            shard, row = self._place(position + attempt * self._order.stride)
        raise ShardError(
            f"{self._reader.paths[shard].parent}: {SUBSTITUTES} bad samples in a row, the last: "
            f"{faults[-1]}; run `sslpipe verify` on the shards"
        )

    def _place(self, position: int) -> tuple[int, int]:
        """Shard and row of one position."""
        with self._order_lock:
            located = self._order.locate(np.array([position], dtype=np.int64))
        return int(located.shards[0]), int(located.rows[0])

    def _decoded(self, sample: Sample, shard: int) -> T:
        """Decode, and name the sample in any error."""
        try:
            return self._decode(sample.data)
        except SampleError as error:
            shard_name = self._reader.paths[shard].name
            raise SampleError(f"{shard_name} {sample.key}: {error}") from error
