"""What is decided of samples before they are sent to workers: for those of several steps at once.

    Wants of each step -> records, instructions, places in a slot -> one table -> Booked of each

NumPy takes about as long for 32 samples as for a thousand, and a trainer's thread may wait for each
of its calls; where a slot lies is not decided here, so all of this is done once for many steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..device.arena import ALIGN
from ..shards.tar_headers import BLOCK
from .packed import Wants
from .records import Records
from .source import Drawn
from .tasks import (
    COLUMNS,
    CRC,
    DECODE,
    EXT,
    EXTENT,
    FILE,
    FLAGS,
    HEADER,
    LABEL,
    MEASURE,
    PLACE,
    READ,
    RESULT,
    ROOM,
    ROW,
    SIZE,
    START,
    TRIMMED,
    UID,
    Kind,
    file_number,
)

I64 = npt.NDArray[np.int64]
# of one task: FEW samples, or up to MANY, if these are MUCH payload and a MESSAGE at most, in bytes
FEW, MANY, MUCH, MESSAGE = 128, 256, 1 << 20, 1 << 16


class Planner(Protocol):
    """What a part of the recipe decides before its samples are decoded."""

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

    def draw_ahead(self, *, epochs: I64, uids: I64, extents: I64) -> Drawn | None:
        """What can be drawn before they are decoded; None: nothing."""
        ...


class Stock(Protocol):
    """What is known of samples before they are read: a `Packed`, or an iterable's `Parcels`."""

    @property
    def corpora(self) -> Sequence[object]:
        """What samples are of."""
        ...

    def records(self, wants: Wants) -> Records:
        """What is known of samples and their payloads."""
        ...

    def others(self, wants: Wants, order: I64) -> I64:
        """(m, MEMBER_COLUMNS) of what is read beside payloads; the first counts in `order`."""
        ...


@dataclass(frozen=True, slots=True)
class Booked:
    """The samples of one step, with all that is decided of them but the slot.

    table: (n, columns of a task), in the order in which they are read: by shard.
    """

    wants: Wants
    kind: Kind
    records: Records
    table: I64
    rooms: I64  # (n, P, 2) where in a slot the arrays of each of `wants` lie, and their bytes
    widths: tuple[int, ...]  # of the instructions of each part
    members: I64  # (m, MEMBER_COLUMNS) of other members; the first column counts in the table
    task: int  # samples of one; the last may have fewer
    size: int  # bytes of a slot that holds them
    usual: list[int]  # what room was thought to be usual where it is not known
    drawn: tuple[Drawn | None, ...] = ()  # of each part; (): for substitutes, nothing

    @property
    def rooms_at(self) -> int:
        """Where in a slot the arrays begin, behind the results; in bytes."""
        return head_bytes(len(self.table), len(self.widths))

    @property
    def instructions(self) -> list[I64]:
        """Those of each part, (n, its width), in the order of `wants`."""
        told = np.empty_like(self.table)
        told[self.table[:, PLACE]] = self.table
        ends = COLUMNS + 2 * len(self.widths) + np.cumsum([0, *self.widths])
        return [told[:, start:end] for start, end in pairwise(ends.tolist())]


@dataclass(frozen=True, slots=True)
class Booking:
    """Books the samples of steps. count: of workers."""

    source: Stock
    parts: Sequence[Planner]
    count: int

    def __call__(self, steps: Sequence[Wants], kind: Kind, usual: list[int]) -> list[Booked]:
        """Decide what workers must know of the samples of some steps.

        usual: bytes of the arrays of each part, where nobody knows how many they are.
        """
        wants = Wants.joined(steps)
        records = self.source.records(wants)
        drawn = self._drawn(wants, records) if kind in (DECODE, TRIMMED) else []
        ahead = [part and part.told for part in drawn if kind == TRIMMED]
        instructions, room = self._told(wants, kind, records, usual, ahead)
        return self.tables(steps, kind, records, instructions, room, usual, drawn)

    def _drawn(self, wants: Wants, records: Records) -> list[Drawn | None]:
        """What can be drawn of each part before samples are decoded; of whole ones alone."""
        if wants.turns.any() or wants.segments.shape[1]:
            return []
        extents = records.samples["extent"].astype(np.int64)
        uids = records.samples["uid"].copy()
        return [
            part.draw_ahead(epochs=wants.epochs, uids=uids, extents=extents) for part in self.parts
        ]

    def _told(
        self,
        wants: Wants,
        kind: Kind,
        records: Records,
        usual: list[int],
        ahead: Sequence[I64 | None],
    ) -> tuple[list[I64], I64]:
        """The instructions of each part, and (n, P) bytes of room; ahead: those that are known."""
        extents = records.samples["extent"].astype(np.int64)
        uids, sizes = records.samples["uid"], records.payloads["size"].astype(np.int64)
        instructions, room = [], np.empty((len(wants), len(self.parts)), dtype=np.int64)
        for number, part in enumerate(self.parts):
            found = ahead[number] if ahead else None
            told = np.empty((len(wants), 0), dtype=np.int64) if found is None else found
            if found is None and kind not in (READ, MEASURE):  # drawing is a seventh of reading
                told = part_instructions(part, wants, uids, extents)
            known = part.room(kind=kind, extents=extents, sizes=sizes, instructions=told)
            room[:, number] = np.where(known > 0, known, usual[number])
            instructions.append(told)
        return instructions, room

    def tables(
        self,
        steps: Sequence[Wants],
        kind: Kind,
        records: Records,
        instructions: Sequence[I64],
        room: I64,
        usual: list[int],
        drawn: Sequence[Drawn | None] = (),
    ) -> list[Booked]:
        """Lay samples in slots, an own one for each step, and in tasks; room: (n, P) bytes."""
        ends = np.cumsum([0, *(len(wants) for wants in steps)])
        step = np.repeat(np.arange(len(steps)), np.diff(ends))
        wants, (rooms, sizes) = Wants.joined(steps), laid(room, ends)
        told = [rooms.reshape(len(room), -1), *instructions]
        table = task_table(wants, records, np.arange(len(room)) - ends[step], np.hstack(told))
        behind = file_number(step * len(self.source.corpora) + wants.corpora, wants.shards)
        order = np.lexsort((wants.rows, behind))
        table = table.take(order, axis=0)
        members = self.source.others(wants, order)
        widths = tuple(told.shape[1] for told in instructions)
        booked = []
        for at, (start, end) in enumerate(pairwise(ends.tolist())):
            mine = slice(start, end)
            task = task_samples(table[mine], self.count)
            its_records = Records(*(each[mine] for each in records))
            booked.append(
                Booked(
                    steps[at], kind, its_records, table[mine], rooms[mine], widths,
                    members_of_some(members, start, end), task, int(sizes[at]), usual,
                    tuple(part and part.at(mine) for part in drawn),
                )
            )  # fmt: skip
        return booked


def part_instructions(part: Planner, wants: Wants, uids: I64, extents: I64) -> I64:
    """What the decoder of a part is told of samples, (n, anything); their segments last."""
    told = part.instructions(epochs=wants.epochs, uids=uids, extents=extents)
    partners = np.flatnonzero(wants.turns)
    if len(partners):
        told = told.copy()
        told[partners] = part.partner_instructions(
            epochs=wants.epochs[partners], uids=wants.owners[partners], extents=extents[partners],
            turns=wants.turns[partners] - 1,
        )  # fmt: skip
    return np.hstack([told, wants.segments]) if wants.segments.shape[1] else told


def task_samples(table: I64, count: int) -> int:
    """How many samples of a step a task has: one for each worker, but no more than FEW or MUCH.

    Those who end early are at the next steps already. A task costs the main process 60 us, or 200
    where decoders share its cores. Where one of two workers is 1.5 times as slow, two tasks of 128
    a step make 0.96 of what both could, four of 64 0.99; where they are alike nothing is lost.
    """
    payload, told = max(1, int(table[:, SIZE].sum()) // len(table)), 8 * table.shape[1]
    most = max(FEW, min(MUCH // payload, MESSAGE // told, MANY))
    return int(max(1, min(most, len(table) // count)))


def laid(room: I64, ends: I64) -> tuple[I64, I64]:
    """Places of arrays behind each other, (n, P, 2), and the bytes of the slot of each step.

    A slot begins with the results of its samples. ends: of the steps among the samples, 0 first.
    """
    counts, parts = np.diff(ends), room.shape[1]
    head = np.array([head_bytes(count, parts) for count in counts.tolist()], dtype=np.int64)
    padded = -(-room // ALIGN) * ALIGN
    behind = np.r_[0, np.cumsum(padded)]  # bytes of all arrays before each, and of all
    base = behind[ends * parts]
    starts = behind[:-1].reshape(room.shape) + np.repeat(head - base[:-1], counts)[:, None]
    return np.stack([starts, room], axis=-1), head + np.diff(base)


def head_bytes(samples: int, parts: int) -> int:
    """Bytes of the results at the head of a slot."""
    return -(-samples * parts * RESULT.itemsize // ALIGN) * ALIGN


def members_of_some(members: I64, start: int, end: int) -> I64:
    """Those of the samples [start, end) of a table, which are counted from there."""
    if not len(members):
        return members
    some = members[(members[:, 0] >= start) & (members[:, 0] < end)]
    some[:, 0] -= start
    return some


def task_table(wants: Wants, records: Records, places: I64, told: I64) -> I64:
    """(n, W) of samples in tasks; told: what stands from ROOM on."""
    samples, payloads = records
    table = np.empty((len(wants), COLUMNS + told.shape[1]), dtype=np.int64)
    header = payloads["blocks"].astype(np.int64) * BLOCK
    offset = payloads["offset"].astype(np.int64)
    for column, values in {
        FILE: file_number(wants.corpora, wants.shards), ROW: wants.rows, UID: samples["uid"],
        LABEL: samples["label"], FLAGS: samples["flags"],
        START: offset - header, HEADER: header, SIZE: payloads["size"], CRC: payloads["crc"],
        EXT: payloads["ext"], PLACE: places,
    }.items():  # fmt: skip
        table[:, column] = values
    table[:, EXTENT : EXTENT + 4] = samples["extent"]
    table[:, ROOM:] = told
    return table
