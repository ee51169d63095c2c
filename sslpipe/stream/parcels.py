"""Samples of an iterable in shared memory: what a tar and its index are for packed ones.

    samples -> one write into a slot -> a Parcel -> booking, tasks, workers    as of packed shards

A sample is a place in the file of the slots: its key, filled up to whole blocks as a tar header is,
then its payload, then other members. So the table of a task, and all that becomes of a task, are as
they ever are. The kernel copies the bytes, without the interpreter's lock.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ..device.slots import Slots
from ..shards.index import MEMBER, SAMPLE, Index
from ..shards.read.open_tars import LocalTar
from ..shards.tar_headers import BLOCK
from .foreign import ForeignSample
from .packed import Wants
from .reader import MEMORY
from .records import Records
from .tasks import MEMBER_COLUMNS

I64 = npt.NDArray[np.int64]
AT_ONCE = 1024  # blocks that are written in one call; systems allow no more
NAME = "iterable"  # in place of a shard's, for messages of workers


@dataclass(frozen=True, slots=True)
class Parcel:
    """Samples that were taken together, and where they lie."""

    keys: Sequence[str]
    urls: Sequence[str]  # where each is from, for messages
    wants: Wants  # all of them; `positions` is the parcel's number, `rows` count in it
    records: Records
    members: I64  # (m, MEMBER_COLUMNS) of what else is read of them; the first column is a row
    lease: npt.NDArray[np.uint8]  # the slot with their bytes

    @property
    def number(self) -> int:
        """Among all parcels."""
        return int(self.wants.positions[0])


class Parcels:
    """Puts samples into memory; knows of them what the indexes and stores of shards know.

    A shard of it has the same file as any other, but more extensions: as many as its number says.
    """

    def __init__(self) -> None:
        self._slots = Slots()  # not the arena: devices have no use for payloads
        self._held: dict[int, Parcel] = {}
        self._packed = 0  # parcels so far
        self._names: dict[str, int] = {}  # extensions, and their numbers
        self._files: dict[int, LocalTar] = {}

    def pack(self, samples: Sequence[ForeignSample]) -> Parcel:
        """Write some samples into memory; at least one. They stay until they are dropped."""
        blocks = [block for sample in samples for block in blocks_of(sample)]
        sizes = np.fromiter(map(len, blocks), dtype=np.int64, count=len(blocks))
        slot = self._slots.take(int(sizes.sum()))
        write_blocks(self._slots.file, blocks, slot.start)
        starts = slot.start + np.cumsum(sizes) - sizes
        counts = [1 + len(sample.members) for sample in samples]
        firsts = np.cumsum([0, *counts[:-1]])
        members = self._member_rows(samples, firsts, starts, sizes)
        records = self._records(samples, firsts, starts, sizes)
        keys, urls = [sample.key for sample in samples], [sample.url for sample in samples]
        parcel = Parcel(keys, urls, self._wants(samples), records, members, slot.memory)
        self._held[self._packed] = parcel
        self._packed += 1
        return parcel

    def _wants(self, samples: Sequence[ForeignSample]) -> Wants:
        nothing = np.zeros(len(samples), dtype=np.int64)
        epochs = np.array([sample.epoch for sample in samples], dtype=np.int64)
        return Wants(
            nothing, nothing + self._packed, epochs, nothing + len(self._names),
            np.arange(len(samples)), np.ones(len(samples), dtype=np.bool_),
            np.empty((len(samples), 0), dtype=np.int64), nothing, nothing,
        )  # fmt: skip

    def _records(
        self, samples: Sequence[ForeignSample], firsts: I64, starts: I64, sizes: I64
    ) -> Records:
        """What an index would say of samples, but for their extents; firsts: of their blocks."""
        found = Records(np.zeros(len(samples), SAMPLE), np.zeros(len(samples), MEMBER))
        found.samples["uid"] = [sample.uid for sample in samples]
        found.samples["label"] = [sample.label for sample in samples]
        payloads = found.payloads
        payloads["offset"], payloads["size"] = starts[firsts + 1], sizes[firsts + 1]
        payloads["blocks"] = sizes[firsts] // BLOCK
        payloads["ext"] = [self._extension(sample.members[0][0]) for sample in samples]
        return found

    def _member_rows(
        self, samples: Sequence[ForeignSample], firsts: I64, starts: I64, sizes: I64
    ) -> I64:
        """What is read of samples beside payloads: (m, MEMBER_COLUMNS)."""
        found = [
            (row, self._extension(ext), starts[at], 0, sizes[at], 0)
            for row, (sample, first) in enumerate(zip(samples, firsts.tolist(), strict=True))
            for at, (ext, _) in enumerate(sample.members[1:], first + 2)
        ]
        return np.array(found, dtype=np.int64).reshape(-1, MEMBER_COLUMNS)

    def _extension(self, name: str) -> int:
        return self._names.setdefault(name, len(self._names))

    def learn(self, parcel: Parcel, rows: I64, extents: I64) -> None:
        """Take note of the extents of some samples: (n, 4)."""
        parcel.records.samples["extent"][rows] = extents

    def drop(self, parcel: Parcel) -> None:
        """Forget samples that are done with; their memory is used again."""
        self._held.pop(parcel.number, None)

    # what booking asks: `booking.Stock`

    @property
    def corpora(self) -> "Sequence[Parcels]":
        """All is of one."""
        return [self]

    def records(self, wants: Wants) -> Records:
        """What is known of samples of one parcel."""
        records = self._held[int(wants.positions[0])].records
        return Records(*(table.take(wants.rows) for table in records))

    def others(self, wants: Wants, order: I64) -> I64:
        """(m, MEMBER_COLUMNS) of what is read beside payloads; the first counts in `order`."""
        parcel = self._held[int(wants.positions[0])]
        if not len(parcel.members):
            return parcel.members
        place = np.full(len(parcel.keys), -1)
        place[wants.rows[order]] = np.arange(len(order))
        found = parcel.members.copy()
        found[:, 0] = place[found[:, 0]]
        return found[found[:, 0] >= 0]

    # what workers ask: `worker_process.FileStore`

    def open(self, shard: int) -> LocalTar:
        """The file with the bytes, and the extensions by their numbers."""
        found = self._files.get(shard)
        if found is None:
            nothing = np.empty(0, SAMPLE), np.empty(0, MEMBER)
            index = Index(*nothing, tuple(self._names), 0, MEMORY.sha256)
            found = self._files[shard] = LocalTar(os.dup(self._slots.file), index)
        return found

    def holds(self, shard: int) -> bool:
        """Whether it is still of use: only that with the most extensions is."""
        return shard == len(self._names)

    def name(self, shard: int) -> str:
        """In place of a file's name, for messages."""
        return NAME

    def beside(self, shard: int) -> str:
        """Nothing lies beside memory."""
        return MEMORY.path

    def close(self) -> None:
        """Let go of all memory."""
        self._held.clear()
        self._files.clear()
        self._slots.close()


def blocks_of(sample: ForeignSample) -> list[bytes]:
    """What is written of a sample: its key, filled up to whole blocks, and its members."""
    key = sample.key.encode()
    blocks = max(1, -(-len(key) // BLOCK))
    return [key.ljust(blocks * BLOCK, b"\0"), *(data for _, data in sample.members)]


def write_blocks(file: int, blocks: Sequence[bytes], start: int) -> None:
    """Write blocks behind each other."""
    for first, end in pairwise([*range(0, len(blocks), AT_ONCE), len(blocks)]):
        some = blocks[first:end]
        size, written = sum(map(len, some)), os.pwritev(file, some, start)
        while written < size:  # a call writes 2 GB at most
            written += os.pwrite(file, b"".join(some)[written:], start + written)
        start += size
