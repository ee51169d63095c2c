"""Samples on their way through the workers: cut into tasks, and gathered again.

A flight has a slot of its own. Each array has a place in it, as large as the index lets expect;
what turns out larger flies once more, in another slot, with the room that it asked for.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..device.arena import ALIGN
from ..device.slots import Slots
from ..shards.tar_headers import BLOCK
from .jobs import Done, key_of, table_of
from .packed import Packed, Wants
from .records import Records, others
from .tasks import (
    COLUMNS,
    CRC,
    EXT,
    EXTENT,
    FILE,
    FLAGS,
    HEADER,
    LABEL,
    MEMBER_COLUMNS,
    PLACE,
    RESULT,
    ROW,
    SHORT,
    SIZE,
    START,
    UID,
    Kind,
    Task,
)  # fmt: skip
from .workers import Crew

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
TASK = 64  # samples per task at most


class Planner(Protocol):
    """What a part of the recipe decides before its samples are decoded."""

    @property
    def reads_payload(self) -> bool:
        """Whether it needs the bytes of the payload; else the tar header alone is read."""
        ...

    def instructions(self, *, epochs: I64, uids: I64, extents: I64) -> I64:
        """What its decoder must know: (n, anything); extents: (n, 4) of the index, 0: unknown."""
        ...

    def partner_instructions(self, *, epochs: I64, uids: I64, extents: I64, turns: I64) -> I64:
        """The same of partners (partners.py), as wide; uids: what those they are for have as keys.

        extents: of the partners. turns: (n,) which partner it is, from 0.
        """
        ...

    def room(self, *, kind: Kind, extents: I64, sizes: I64, instructions: I64) -> I64:
        """How many bytes each decoded array takes, (n,); 0: not known. sizes: of the payloads."""
        ...


@dataclass(frozen=True, slots=True)
class FlightPlan:
    """What is decided of some samples before workers hear of them."""

    wants: Wants
    records: Records
    instructions: list[I64]  # of each part
    room: I64  # (n, P) bytes that each array takes; 0: not known

    def at(self, places: slice) -> "FlightPlan":
        """The same of some of the samples."""
        return FlightPlan(
            self.wants.at(places),
            Records(*(table[places] for table in self.records)),
            [told[places] for told in self.instructions],
            self.room[places],
        )


@dataclass(frozen=True, slots=True)
class Flight:
    """Samples whose tasks were submitted; their arrays will lie in `memory`."""

    wants: Wants
    kind: Kind
    records: Records
    instructions: list[I64]  # of each part
    rooms: I64  # (n, P, 2): where each array has its place, and its bytes
    memory: U8
    future: "Future[list[Done]]"


@dataclass(slots=True)
class Landed:
    """Samples that were tried, a row each, whichever slot their arrays lie in."""

    wants: Wants
    records: Records
    results: npt.NDArray[np.void]  # (n, P) of RESULT
    starts: I64  # (n, P) where in its slot each array begins
    slots: list[U8]
    slot: I64  # (n,) which of them
    keys: dict[int, str]  # of samples whose results do not have it
    reasons: dict[int, str]  # why the samples in these places are bad

    def replace(self, places: I64, other: "Landed") -> None:
        """Put other samples in some places of these."""
        shards, rows = self.wants.shards.copy(), self.wants.rows.copy()
        shards[places], rows[places] = other.wants.shards, other.wants.rows
        # the rest of the wants stays: a substitute has its position's epoch
        self.wants = replace(self.wants, shards=shards, rows=rows)
        self.records = Records(*(table.copy() for table in self.records))
        for mine, theirs in zip(self.records, other.records, strict=True):
            mine[places] = theirs
        self.results[places], self.starts[places] = other.results, other.starts
        self.slot[places] = other.slot + len(self.slots)
        self.slots += other.slots
        for texts, new in ((self.keys, other.keys), (self.reasons, other.reasons)):
            for at, place in enumerate(places.tolist()):
                texts.pop(place, None)
                if at in new:
                    texts[place] = new[at]

    def key(self, place: int) -> str | None:
        """The key of a sample; None where its tar header does not tell it."""
        return self.keys.get(place) or key_of(self.results[place, 0])


class Flights:
    """Sends samples through a crew. `count`: of workers, between whom a batch is divided."""

    def __init__(
        self, source: Packed, crew: Crew, slots: Slots, parts: Sequence[Planner], *, count: int
    ) -> None:
        self._source, self._crew, self._slots, self._parts = source, crew, slots, parts
        self._count = max(1, count)
        self._usual = [1 << 12] * len(parts)  # bytes of the largest array that was short of room

    def depart(self, wants: Wants, kind: Kind) -> Flight:
        """Decide what workers must know of some samples, and submit them."""
        return self.fly(self.plan(wants, kind), kind)

    def plan(self, wants: Wants, kind: Kind) -> FlightPlan:
        """Decide what workers must know of some samples: of one step, or of many."""
        records = self._source.records(wants)
        extents = records.samples["extent"].astype(np.int64)
        uids, sizes = records.samples["uid"], records.payloads["size"].astype(np.int64)
        instructions, room = [], np.empty((len(wants), len(self._parts)), dtype=np.int64)
        for number, part in enumerate(self._parts):
            told = part.instructions(epochs=wants.epochs, uids=uids, extents=extents)
            if len(partners := np.flatnonzero(wants.turns)):
                told = told.copy()
                told[partners] = part.partner_instructions(
                    epochs=wants.epochs[partners], uids=wants.owners[partners],
                    extents=extents[partners], turns=wants.turns[partners] - 1,
                )  # fmt: skip
            told = np.hstack([told, wants.segments])  # each decoder is told its segments last
            room[:, number] = part.room(kind=kind, extents=extents, sizes=sizes, instructions=told)
            instructions.append(told)
        return FlightPlan(wants, records, instructions, room)

    def fly(self, plan: FlightPlan, kind: Kind) -> Flight:
        """Submit samples."""
        room = np.where(plan.room > 0, plan.room, self._usual)
        return self._submit(plan.wants, kind, plan.records, plan.instructions, room)

    def _submit(
        self, wants: Wants, kind: Kind, records: Records, instructions: list[I64], room: I64
    ) -> Flight:
        """Submit samples that have so much room, (n, P) bytes."""
        head = -(-room.size * RESULT.itemsize // ALIGN) * ALIGN
        padded = -(-room // ALIGN) * ALIGN
        ends = head + np.cumsum(padded.ravel()).reshape(room.shape)
        rooms = np.stack([ends - padded, room], axis=-1)
        slot = self._slots.take(int(ends[-1, -1]))
        table_of(slot.memory, *room.shape)[...] = np.zeros((), RESULT)
        place = slot.start, len(slot.memory)
        flight = Flight(wants, kind, records, instructions, rooms, slot.memory, Future())
        tasks = self._tasks(flight, place)
        return replace(flight, future=self._crew.submit(tasks, slot.memory))

    def _tasks(self, flight: Flight, slot: tuple[int, int]) -> list[Task]:
        """The samples of a flight by shard, cut into tasks."""
        wants = flight.wants
        order = np.lexsort((wants.rows, wants.shards, wants.corpora))
        pairs = np.stack([wants.corpora, wants.shards], axis=1)[order]
        new = np.r_[True, (pairs[1:] != pairs[:-1]).any(1)]
        files = [(corpus, shard) for corpus, shard in pairs[new].tolist()]
        samples = sample_table(wants, flight.records)[order]
        if not any(part.reads_payload for part in self._parts):
            samples[:, [SIZE, CRC]] = 0  # of no bytes
        samples[:, FILE] = np.cumsum(new) - 1
        rooms, told = flight.rooms[order], [each[order] for each in flight.instructions]
        members = self._members(pairs, samples)
        # one for each worker: those that end early are at the next batches already
        size = max(1, min(TASK, len(order) // self._count))
        whole = Task(flight.kind, slot, files, samples, rooms, told, members)
        return [whole.part(start, start + size) for start in range(0, len(order), size)]

    def _members(self, pairs: I64, samples: I64) -> I64:
        """(m, MEMBER_COLUMNS) of the members that are read beside the payloads of a flight."""
        found: list[tuple[int, ...]] = []
        corpora = self._source.corpora
        rows = samples[:, ROW].tolist() if any(corpus.members for corpus in corpora) else []
        for at, ((corpus, shard), row) in enumerate(zip(pairs.tolist(), rows, strict=False)):
            wanted, index = corpora[corpus].members, corpora[corpus].store.index(shard)
            found += [(at, *member) for member in others(index, row, wanted)]
        return np.array(found, dtype=np.int64).reshape(-1, MEMBER_COLUMNS)

    def land(self, flight: Flight) -> Landed:
        """Wait for samples; those that were short of room are sent again.

        Raises:
            ShardError: a shard cannot be read, which says nothing of the sample.
        """
        landed = gathered(flight)
        short = (landed.results["status"] == SHORT).any(1)
        if short.any():
            places = np.flatnonzero(short)
            landed.replace(places, self.land(self._wider(flight, landed, places)))
        return landed

    def _wider(self, flight: Flight, landed: Landed, places: I64) -> Flight:
        """The samples in some places once more, with the room that they asked for."""
        asked = np.maximum(landed.results["bytes"][places], flight.rooms[places, :, 1])
        self._usual = np.maximum(self._usual, asked.max(0)).tolist()
        records = Records(*(table[places] for table in flight.records))
        instructions = [told[places] for told in flight.instructions]
        return self._submit(flight.wants.at(places), flight.kind, records, instructions, asked)


def sample_table(wants: Wants, records: Records) -> I64:
    """(n, COLUMNS) of a task's samples; FILE is filled in by task."""
    samples, payloads = records
    table = np.zeros((len(wants), COLUMNS), dtype=np.int64)
    header = payloads["blocks"].astype(np.int64) * BLOCK
    offset = payloads["offset"].astype(np.int64)
    for column, values in {
        ROW: wants.rows, UID: samples["uid"], LABEL: samples["label"], FLAGS: samples["flags"],
        START: offset - header, HEADER: header, SIZE: payloads["size"], CRC: payloads["crc"],
        EXT: payloads["ext"], PLACE: np.arange(len(wants)),
    }.items():  # fmt: skip
        table[:, column] = values
    table[:, EXTENT : EXTENT + 4] = samples["extent"]
    return table


def gathered(flight: Flight) -> Landed:
    """Wait for the tasks of a flight, and put together what they found."""
    keys: dict[int, str] = {}
    reasons: dict[int, str] = {}
    for done in flight.future.result():
        places = done.task.samples[:, PLACE]
        keys |= {int(places[row]): key for row, key in done.keys.items()}
        for failed in done.faults:
            reasons[int(places[failed.row])] = failed.reason
            if failed.key is not None:
                keys[int(places[failed.row])] = failed.key
    n, parts = flight.rooms.shape[:2]
    return Landed(
        flight.wants,
        flight.records,
        table_of(flight.memory, n, parts).copy(),
        flight.rooms[..., 0].copy(),
        [flight.memory],
        np.zeros(n, dtype=np.int64),
        keys,
        reasons,
    )
