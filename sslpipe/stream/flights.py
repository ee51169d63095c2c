"""Samples on their way through the workers: sent as tasks, and gathered again.

A flight has a slot of its own. Each array has a place in it, as large as the index lets expect;
what turns out larger flies once more, in another slot, with the room that it asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..device.slots import Slots
from .booking import Booked, Booking, Planner, Stock, members_of_some
from .crew import Crew
from .jobs import Flown, Results, are_alike, key_of, table_of
from .packed import Wants
from .records import Records
from .source import Drawn
from .tasks import PLACE, SHORT, WORDS, Kind, Task

USUAL = 1 << 12  # bytes of an array, where nobody knows how many, until one was short of room
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Flight:
    """Samples whose tasks were submitted; their arrays will lie in `memory`."""

    booked: Booked
    memory: U8
    flown: Flown

    @property
    def kind(self) -> Kind:
        """What is done with the samples."""
        return self.booked.kind

    @property
    def drawn(self) -> tuple[Drawn | None, ...]:
        """What was drawn of each part ahead of decoding."""
        return self.booked.drawn


@dataclass(slots=True)
class Landed:
    """Samples that were tried, a row each, whichever slot their arrays lie in."""

    wants: Wants
    records: Records
    words: I64  # (n, P * WORDS): `results` as words, which is what most need
    alike: bool  # all is well, the arrays of each part are of one kind, and lie in the only slot
    starts: I64  # (n, P) where in its slot each array begins
    slots: list[U8]
    slot: I64  # (n,) which of them
    keys: dict[int, str]  # of samples whose results do not have it
    reasons: dict[int, str]  # why the samples in these places are bad

    @property
    def results(self) -> Results:
        """(n, P) of RESULT, in the memory of `words`."""
        return table_of(self.words, len(self.words), self.starts.shape[1])

    def replace(self, places: I64, other: "Landed") -> None:
        """Put other samples in some places of these."""
        # the rest of the wants stays: a substitute has its position's epoch
        self.wants.shards[places], self.wants.rows[places] = other.wants.shards, other.wants.rows
        for mine, theirs in zip(self.records, other.records, strict=True):
            mine[places] = theirs
        self.words[places], self.starts[places] = other.words, other.starts
        self.alike = False
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
        self, source: Stock, crew: Crew, slots: Slots, parts: Sequence[Planner], *, count: int
    ) -> None:
        self._crew, self._slots = crew, slots
        self._booking = Booking(source, parts, max(1, count))
        self._usual = [USUAL] * len(parts)  # bytes of the largest array that was short of room

    def book(self, steps: Sequence[Wants], kind: Kind) -> list[Booked]:
        """Decide what workers must know of the samples of some steps."""
        return self._booking(steps, kind, self._usual)

    def depart(self, booked: Booked) -> Flight:
        """Submit samples; those that were booked before more room was asked for anew."""
        if booked.usual != self._usual:
            (booked,) = self.book([booked.wants], booked.kind)
        return self._submit(booked)

    def _submit(self, booked: Booked) -> Flight:
        slot = self._slots.take(booked.size)
        slot.memory[: booked.rooms_at].fill(0)  # the results: NEW
        tasks = tasks_of(booked, (slot.start, len(slot.memory)))
        return Flight(booked, slot.memory, self._crew.submit(tasks, slot.memory))

    def land(self, flight: Flight) -> Landed:
        """Wait for samples; those that were short of room are sent again.

        Raises:
            ShardError: a shard cannot be read, which says nothing of the sample.
        """
        landed = gathered(flight)
        if not landed.alike:
            short = np.flatnonzero((landed.results["status"] == SHORT).any(1))
            if len(short):
                landed.replace(short, self.land(self._wider(flight.booked, landed, short)))
        return landed

    def _wider(self, booked: Booked, landed: Landed, places: I64) -> Flight:
        """The samples in some places once more, with the room that they asked for."""
        asked = np.maximum(landed.results["bytes"][places], booked.rooms[places, :, 1])
        self._usual = np.maximum(self._usual, asked.max(0)).tolist()
        records = Records(*(table[places] for table in booked.records))
        told = [each[places] for each in booked.instructions]
        (wider,) = self._booking.tables(
            [booked.wants.at(places)], booked.kind, records, told, asked, self._usual
        )
        return self._submit(wider)


def tasks_of(booked: Booked, slot: tuple[int, int]) -> list[Task]:
    """The samples of a step in tasks."""
    tasks = []
    for start in range(0, len(booked.table), booked.task):
        end = start + booked.task
        members = members_of_some(booked.members, start, end)
        table = booked.table[start:end]
        tasks.append(Task(booked.kind, slot, table, booked.widths, members))
    return tasks


def gathered(flight: Flight) -> Landed:
    """Wait for the tasks of a flight, and put together what they found."""
    keys: dict[int, str] = {}
    reasons: dict[int, str] = {}
    for done in flight.flown.result():
        places = done.task.table[:, PLACE]
        keys |= {int(places[row]): key for row, key in done.keys.items()}
        for failed in done.faults:
            reasons[int(places[failed.row])] = failed.reason
            if failed.key is not None:
                keys[int(places[failed.row])] = failed.key
    booked, n = flight.booked, len(flight.booked.table)
    words = flight.memory[: 8 * n * WORDS * len(booked.widths)].copy().view(np.int64).reshape(n, -1)
    return Landed(
        booked.wants,
        booked.records,
        words,
        not reasons and are_alike(words),
        booked.rooms[..., 0],
        [flight.memory],
        np.zeros(n, dtype=np.int64),
        keys,
        reasons,
    )
