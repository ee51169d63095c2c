"""Samples whose arrays lie ready in files beside their tars: read here, a share at a time.

What a worker would do for a piece of ids, read and check some hundred bytes, costs less than to
tell it: no task is written, no process woken, no header of a tar read for a key. All the rest, what
is bad and what stands in for it, is as of samples that workers decode (flights.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ..device.buffers import Memory
from ..device.slots import Slots
from ..errors import SampleError
from ..shards.tar_headers import BLOCK
from .booking import Planner
from .flights import Landed
from .packed import Packed, Wants
from .reader import TarPlace, key_in
from .records import Records
from .source import Drawn, first_of_runs
from .tasks import RESULT, Kind
from .worker_process import opened

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]


class StoredPlaces(NamedTuple):
    """Samples that are asked for, (n,), those of one tar beside each other.

    firsts: of the samples of each tar, its first one. rows: in the tars. extents: (n, 4) of the
    index. told: (n, anything) what a decoder would be told.
    """

    tars: Sequence[TarPlace]
    firsts: I64
    rows: I64
    extents: I64
    told: I64


class StoredArrays(NamedTuple):
    """What was read of n samples: arrays of one type and one axis, behind each other in `flat`.

    sizes: (n,) elements of each, 0 of a bad one. extents: (n,) how large the whole samples are.
    keys: "" where the file does not tell it. reasons: why samples are bad, by their place.
    """

    flat: npt.NDArray[Any]
    sizes: I64
    extents: I64
    keys: list[str]
    reasons: dict[int, str]


class StoredReader(Protocol):
    """Reads many samples from files beside their tars; a modality's own."""

    def __call__(self, places: StoredPlaces, memory: Memory) -> StoredArrays:
        """Read samples. memory: gives `flat`, in one call.

        Raises:
            ShardError: a file is missing or damaged, which says nothing of a sample.
        """
        ...


@dataclass(frozen=True, slots=True)
class StoredBooking:
    """Samples of a step that are to be read."""

    wants: Wants
    kind: Kind


@dataclass(frozen=True, slots=True)
class StoredFlight:
    """Samples that were read already."""

    kind: Kind
    landed: Landed
    drawn: tuple[Drawn | None, ...] = ()  # nothing is drawn ahead


class StoredFlights:
    """Reads the samples of one part in the thread that asks."""

    def __init__(self, source: Packed, slots: Slots, part: Planner, reader: StoredReader) -> None:
        self._source, self._slots, self._part, self._reader = source, slots, part, reader
        self._stores = [corpus.store for corpus in source.corpora]
        self._places: dict[tuple[int, int], TarPlace] = {}  # looking one up takes 20 us

    def book(self, steps: Sequence[Wants], kind: Kind) -> list[StoredBooking]:
        """Nothing is decided beforehand: reading a step takes less than to write down how."""
        return [StoredBooking(wants, kind) for wants in steps]

    def land(self, flight: StoredFlight) -> Landed:
        """They have landed."""
        return flight.landed

    def depart(self, booked: StoredBooking) -> StoredFlight:
        """Read and check the samples of a step.

        Raises:
            ShardError: a file beside a tar is missing or damaged.
        """
        wants = booked.wants
        records = self._source.records(wants)
        extents = records.samples["extent"].astype(np.int64)
        told = self._part.instructions(
            epochs=wants.epochs, uids=records.samples["uid"], extents=extents
        )
        order = np.lexsort((wants.rows, wants.shards, wants.corpora))
        places = StoredPlaces(
            *self._tars(wants, order), wants.rows[order], extents[order],
            np.hstack([told, wants.segments])[order],
        )  # fmt: skip
        room = SlotRoom(self._slots)
        found = self._reader(places, room)
        return StoredFlight(booked.kind, self._landed(wants, records, order, found, room.memory))

    def _tars(self, wants: Wants, order: I64) -> tuple[list[TarPlace], I64]:
        """The tars of samples in an order, and the first sample of each."""
        corpora, shards = wants.corpora[order], wants.shards[order]
        firsts = first_of_runs(corpora, shards)
        pairs = zip(corpora[firsts].tolist(), shards[firsts].tolist(), strict=True)
        return [self._tar(*pair) for pair in pairs], firsts

    def _tar(self, corpus: int, shard: int) -> TarPlace:
        """A tar of a corpus."""
        found = self._places.get((corpus, shard))
        if found is None:
            store = self._stores[corpus]
            found = TarPlace(store.beside(shard), store.manifest.shards[shard].sha256)
            self._places[corpus, shard] = found
        return found

    def _landed(
        self, wants: Wants, records: Records, order: I64, found: StoredArrays, memory: U8
    ) -> Landed:
        """What was read, each in the place where it was wanted."""
        count, width = len(order), found.flat.dtype.itemsize
        results = np.zeros((count, 1), RESULT)
        first, sizes = results[:, 0], width * found.sizes
        first["type"], first["axes"], first["extents"] = found.flat.dtype.num, 1, 1
        first["bytes"][order], first["extent"][order, 0] = sizes, found.extents
        first["shape"][order, 0] = found.sizes
        starts, slot = np.empty((count, 1), dtype=np.int64), np.zeros(count, dtype=np.int64)
        starts[order, 0] = np.cumsum(sizes) - sizes
        keys = dict(zip(order.tolist(), found.keys, strict=True))
        reasons = {int(order[place]): reason for place, reason in found.reasons.items()}
        landed = Landed(wants, records, results, starts, [memory], slot, keys, reasons)
        for place in [place for place, key in keys.items() if not key]:
            self._look_up(landed, place)
        return landed

    def _look_up(self, landed: Landed, place: int) -> None:
        """Read a key in the header of the tar: of a bad sample, or where a file has no keys."""
        wants, records, reason = landed.wants, landed.records, landed.reasons.get(place)
        shard = opened(self._stores, int(wants.corpora[place]), int(wants.shards[place]))
        where = f"{shard.name} sample {wants.rows[place]}"
        payload, uid = records.payloads[place], int(records.samples["uid"][place])
        size = BLOCK * int(payload["blocks"])
        header, _ = shard.tar.read(int(payload["offset"]) - size, size, 0)
        try:
            landed.keys[place] = key = key_in(header, uid)
            where = f"{shard.name} {key}"
        except SampleError as error:
            reason = reason or str(error)
        if reason:
            landed.reasons[place] = f"{where}: {reason}"


class SlotRoom:
    """Gives a slot as memory for one array."""

    def __init__(self, slots: Slots) -> None:
        self._slots, self.memory = slots, np.empty(0, dtype=np.uint8)

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """The beginning of a new slot."""
        size = prod(shape) * np.dtype(dtype).itemsize
        self.memory = self._slots.take(size).memory
        return self.memory[:size].view(dtype).reshape(shape)
