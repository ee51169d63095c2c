"""Samples whose arrays lie ready in files beside their tars: read here, a share at a time.

What a worker would do for a piece of ids, read and check some hundred bytes, costs less than to
tell it: no task is written, no process woken, no header of a tar read for a key. All the rest, what
is bad and what stands in for it, is as of samples that workers decode (flights.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ..device.arena import ALIGN
from ..device.slots import Slots
from ..errors import SampleError, ShardError
from ..shards.tar_headers import BLOCK
from .booking import Planner
from .flights import Landed
from .lanes import first_of_runs
from .packed import Packed, Wants
from .reader import TarPlace, key_in
from .records import Records
from .source import COLUMN, LENGTH, ROW, START, Drawn
from .tasks import DECODE, RESULT, TRIMMED, Kind
from .worker_process import opened

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
TOGETHER = 1 << 19  # elements that are read in one go: 2 MB of ids, a slot


class StoredPlaces(NamedTuple):
    """Samples that are asked for, (n,), in the order of tars and of what stands in them.

    firsts: of the samples of each tar, its first one. rows: in the tars. extents: (n, 4) of the
    index. told: (n, anything) what a decoder would be told.
    """

    tars: Sequence[TarPlace]
    firsts: I64
    rows: I64
    extents: I64
    told: I64


class StoredArrays(NamedTuple):
    """What was read of n samples: arrays of one type and one axis, in one buffer, `flat`.

    starts: (n,) where in it each begins. sizes: (n,) elements of each, 0 of a bad one. extents:
    (n,) how large the whole samples are. keys: "" where the file does not tell it. reasons: why
    samples are bad, by their place.
    """

    flat: npt.NDArray[Any]
    starts: I64
    sizes: I64
    extents: I64
    keys: list[str]
    reasons: dict[int, str]


class StoredRoom(Protocol):
    """Gives memory for arrays of one axis."""

    def __call__(self, sizes: I64, dtype: npt.DTypeLike) -> tuple[npt.NDArray[Any], I64]:
        """A buffer for arrays of so many elements, (n,), and where in it each begins; once.

        What stands between them is arbitrary.
        """
        ...


class StoredReader(Protocol):
    """Reads many samples from files beside their tars; a modality's own."""

    def __call__(self, places: StoredPlaces, room: StoredRoom) -> StoredArrays:
        """Read samples.

        Raises:
            ShardError: a file is missing or damaged, which says nothing of a sample.
        """
        ...


@dataclass(slots=True, eq=False)
class StepsTogether:
    """Steps whose samples are read in one go. flights: of each, None once it was taken."""

    wants: Sequence[Wants]
    flights: list["StoredFlight | None"] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class StoredBooking:
    """Samples of a step that are to be read, one of some steps."""

    kind: Kind
    steps: StepsTogether
    number: int


@dataclass(frozen=True, slots=True)
class StoredFlight:
    """Samples that were read already."""

    kind: Kind
    landed: Landed
    drawn: tuple[Drawn | None, ...] = ()  # ahead, of rows


class StoredFlights:
    """Reads the samples of one part in the thread that asks."""

    def __init__(self, source: Packed, slots: Slots, part: Planner, reader: StoredReader) -> None:
        self._source, self._slots, self._part, self._reader = source, slots, part, reader
        self._stores = [corpus.store for corpus in source.corpora]
        self._places: dict[tuple[int, int], TarPlace] = {}  # looking one up takes 20 us

    def book(self, steps: Sequence[Wants], kind: Kind) -> list[StoredBooking]:
        """Decide which steps are read in one go, when the first of them departs."""
        return [
            StoredBooking(kind, some, number)
            for some in map(StepsTogether, together(steps))
            for number in range(len(some.wants))
        ]

    def land(self, flight: StoredFlight) -> Landed:
        """Give the samples: reading them was all, and is done."""
        return flight.landed

    def depart(self, booked: StoredBooking) -> StoredFlight:
        """Read and check the samples of a step.

        Raises:
            ShardError: a file beside a tar is missing or damaged.
        """
        steps, number = booked.steps, booked.number
        if not steps.flights:
            try:
                steps.flights += self._read(steps.wants, booked.kind)
            except ShardError:  # perhaps of a later step, whose turn will come
                steps.flights += [None] * len(steps.wants)
        flight, steps.flights[number] = steps.flights[number], None
        return flight or self._read([steps.wants[number]], booked.kind)[0]

    def _read(self, steps: Sequence[Wants], kind: Kind) -> list[StoredFlight]:
        """Read and check the samples of some steps, and draw what can be drawn of them."""
        wants = Wants.joined(steps)
        records = self._source.records(wants)
        uids, extents = records.samples["uid"].copy(), records.samples["extent"].astype(np.int64)
        told = self._part.instructions(epochs=wants.epochs, uids=uids, extents=extents)
        starts = wants.segments[:, START] if wants.segments.shape[1] else np.zeros_like(uids)
        order = np.lexsort((starts, wants.rows, wants.corpora << 32 | wants.shards))
        places = StoredPlaces(
            *self._tars(wants, order), wants.rows[order], extents[order],
            np.hstack([told, wants.segments])[order],
        )  # fmt: skip
        room = SlotRoom(self._slots, steps, order)
        found = self._reader(places, room)
        drawn = self._drawn(wants, steps, uids, extents) if kind in (DECODE, TRIMMED) else None
        flights, end = list[StoredFlight](), 0
        for landed in in_places(steps, records, order, found, room.memory):
            for place in [place for place, key in landed.keys.items() if not key]:
                self._look_up(landed, place)
            at = slice(end, end := end + len(landed.wants))
            flights.append(StoredFlight(kind, landed, (drawn.at(at),) if drawn else ()))
        return flights

    def _drawn(self, wants: Wants, steps: Sequence[Wants], uids: I64, extents: I64) -> Drawn | None:
        """What can be drawn of pieces of rows, which are counted over all steps for that."""
        if not wants.segments.shape[1]:
            return None
        segments, first, row = wants.segments.copy(), 0, 0
        for each in steps:
            segments[first : (first := first + len(each)), ROW] += row
            row += int(each.segments[:, ROW].max(initial=-1)) + 1
        return self._part.draw_ahead(
            epochs=wants.epochs, uids=uids, extents=np.hstack([extents, segments])
        )

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


def together(steps: Sequence[Wants]) -> list[list[Wants]]:
    """Steps in groups that are read in one go; how large whole samples are is not known."""
    groups, left = list[list[Wants]](), 0
    for wants in steps:
        told = wants.segments[:, LENGTH:]
        size = int(told.sum()) if told.shape[1] else TOGETHER
        if not groups or size > left:
            groups, left = [*groups, []], TOGETHER
        groups[-1].append(wants)
        left -= size
    return groups


class SlotRoom:
    """Gives a slot for what is read of some steps in an order, of which each has its `memory`.

    Pieces of rows lie in it as in their rows, and these behind each other, so nobody has to lay
    them any more. Whole samples lie in the order in which they are read.
    """

    def __init__(self, slots: Slots, steps: Sequence[Wants], order: I64) -> None:
        self._slots, self._steps, self._order = slots, steps, order
        self.memory: list[U8] = []

    def __call__(self, sizes: I64, dtype: npt.DTypeLike) -> tuple[npt.NDArray[Any], I64]:
        """The beginning of a new slot."""
        width = np.dtype(dtype).itemsize
        if self._steps[0].segments.shape[1]:
            starts, ends = places_in_rows([wants.segments for wants in self._steps])
            starts = starts[self._order]
        else:
            starts, ends = np.cumsum(sizes) - sizes, [int(sizes.sum())]
        memory = self._slots.take(width * ends[-1]).memory
        edges = pairwise([0, *(width * end for end in ends)])
        self.memory += [memory[begin:end] for begin, end in edges]
        return memory[: width * ends[-1]].view(dtype), starts


def places_in_rows(steps: Sequence[I64]) -> tuple[I64, list[int]]:
    """Where the pieces of some steps begin if their rows lie behind each other, (n,).

    Rows of a step are as long as its longest. Also, where each step ends.
    """
    starts, end, ends = list[I64](), 0, list[int]()
    for segments in steps:
        length = int((segments[:, COLUMN] + segments[:, LENGTH]).max(initial=0))
        starts.append(end + segments[:, ROW] * length + segments[:, COLUMN])
        size = length * (int(segments[:, ROW].max(initial=-1)) + 1)
        end += -(-size // ALIGN) * ALIGN
        ends.append(end)
    return np.concatenate(starts), ends


def in_places(
    steps: Sequence[Wants], records: Records, order: I64, found: StoredArrays, memory: Sequence[U8]
) -> list[Landed]:
    """What was read in an order, each in the place where it was wanted, in its step's memory."""
    words, starts = results_of(found, order)
    keys = [""] * len(order)
    for place, key in zip(order.tolist(), found.keys, strict=True):
        keys[place] = key
    reasons = {int(order[place]): reason for place, reason in found.reasons.items()}
    landed, first, begin = list[Landed](), 0, 0
    for wants, own in zip(steps, memory, strict=True):
        at = slice(first, first + len(wants))
        bad = {place - first: reasons[place] for place in reasons if at.start <= place < at.stop}
        tables = Records(*(table[at] for table in records))
        slot, told = np.zeros(len(wants), dtype=np.int64), dict(enumerate(keys[at]))
        landed.append(
            Landed(wants, tables, words[at], not bad, starts[at] - begin, [own], slot, told, bad)
        )
        first, begin = at.stop, begin + len(own)
    return landed


def results_of(found: StoredArrays, order: I64) -> tuple[I64, I64]:
    """Results as words, and where arrays begin, in bytes, (n, 1); in the places that want them."""
    count, width = len(order), found.flat.dtype.itemsize
    results, starts = np.zeros((count, 1), RESULT), np.empty((count, 1), dtype=np.int64)
    first = results[:, 0]
    first["type"], first["axes"], first["extents"] = found.flat.dtype.num, 1, 1
    first["bytes"][order], first["extent"][order, 0] = width * found.sizes, found.extents
    first["shape"][order, 0], starts[order, 0] = found.sizes, width * found.starts
    return results.view(np.int64), starts
