"""What goes between the main process and its workers: tables of plain numbers, many samples each.

    main process -> worker   a Task: which samples, where they lie, where their arrays shall go
    worker -> main process   a Result of each sample and part, in the slot; texts for faults only

A slot begins with the table of results, (samples, parts); the arrays lie behind it.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
Kind = int
DECODE, ALONE, READ = 0, 1, 2  # decode as the device wants it; decode whole, here; only read

# types of arrays that can be sent, by the names that NumPy and torch have in common
SENT = "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "bool"
NEW, DONE, FAULT, SHORT = 0, 1, 2, 3  # status; SHORT: the array needs more room than it was given
KEY_BYTES = 112  # of a key that fits into a result; a longer one comes as text
RESULT = np.dtype(
    [
        ("key_bytes", "<i2"),  # -1: too long; 0: not known
        ("status", "<i2"),
        ("type", "<i2"),  # NumPy's number of the array's type
        ("axes", "<i2"),
        ("extents", "<i2"),  # how many numbers the extent has
        ("bytes", "<i8"),  # that the array takes
        ("shape", "<i8", 4),
        ("extent", "<i8", 4),
        ("key", "u1", KEY_BYTES),
    ]
)
# the same without the key: a field of a NumPy record takes as long as all of a struct
RESULT_HEAD, KEY_SIZE = struct.Struct("<hhhhhq4q4q"), struct.Struct("<h")
KEY_AT = RESULT_HEAD.size

# columns of a sample in a task; its payload first
FILE, ROW, UID, LABEL, FLAGS, EXTENT, START, HEADER, SIZE, CRC, EXT, PLACE = (
    *range(6),
    *range(9, 15),
)
COLUMNS = 15
# columns of a member that is read beside the payload: the sample's place in the task, then where
MEMBER_COLUMNS = 6
HEAD = struct.Struct("<qqqqqqq")  # task, kind, slot start, slot bytes, samples, parts, members


@dataclass(slots=True)
class Task:
    """Some samples of a share, for one worker.

    samples: (n, COLUMNS); FILE counts in `files`, PLACE in the results of the slot.
    rooms: (n, P, 2) where in the slot each part's array begins, and how many bytes it may take.
    instructions: for each part (n, anything), read by its decoder alone.
    members: (m, MEMBER_COLUMNS) of other members that are wanted.
    """

    kind: Kind
    slot: tuple[int, int]
    files: list[tuple[int, int]]  # corpus, shard
    samples: I64
    rooms: I64
    instructions: Sequence[I64]
    members: I64

    def packed(self, number: int, files: Sequence[int]) -> bytes:
        """As a message; `files`: what this worker calls the files of the task."""
        n, parts = self.rooms.shape[:2]
        samples = self.samples.copy()
        samples[:, FILE] = np.array(files, dtype=np.int64)[samples[:, FILE]]
        widths = np.array([table.shape[1] for table in self.instructions], dtype=np.int64)
        head = HEAD.pack(number, self.kind, *self.slot, n, parts, len(self.members))
        tables = (widths, samples, self.rooms, *self.instructions, self.members)
        return head + b"".join(np.ascontiguousarray(table).tobytes() for table in tables)

    def part(self, start: int, end: int) -> "Task":
        """The samples from `start` to `end`, which are sorted by file."""
        samples, members = self.samples[start:end].copy(), self.members
        first, last = int(samples[0, FILE]), int(samples[-1, FILE])
        samples[:, FILE] -= first
        inside = members[(members[:, 0] >= start) & (members[:, 0] < end)]
        inside[:, 0] -= start
        return Task(
            self.kind, self.slot, self.files[first : last + 1], samples, self.rooms[start:end],
            [table[start:end] for table in self.instructions], inside,
        )  # fmt: skip

    def rest(self, rows: Sequence[int]) -> "Task":
        """The same task of some of its samples."""
        at = np.array(rows, dtype=np.int64)
        renumbered = np.full(len(self.samples), -1)
        renumbered[at] = np.arange(len(at))
        members = self.members.copy()
        members[:, 0] = renumbered[members[:, 0]] if len(members) else members[:, 0]
        return Task(
            self.kind, self.slot, self.files, self.samples[at], self.rooms[at],
            [table[at] for table in self.instructions], members[members[:, 0] >= 0],
        )  # fmt: skip


class Unpacked(NamedTuple):
    """A task as its worker reads it: lists of Python numbers, which are quicker one by one."""

    number: int
    kind: Kind
    slot: tuple[int, int]
    samples: list[list[int]]
    rooms: list[list[list[int]]]
    instructions: list[list[list[int]]]
    members: list[list[int]]


def unpacked(message: bytes) -> Unpacked:
    """The task of a message."""
    number, kind, start, size, n, parts, members = HEAD.unpack_from(message)
    numbers = np.frombuffer(message, np.int64, offset=HEAD.size)
    widths = numbers[:parts].tolist()
    lengths = [parts, n * COLUMNS, n * parts * 2, *(n * width for width in widths)]
    _, samples, rooms, *rest = np.split(numbers, np.cumsum(lengths))
    return Unpacked(
        number,
        kind,
        (start, size),
        samples.reshape(n, COLUMNS).tolist(),
        rooms.reshape(n, parts, 2).tolist(),
        [table.reshape(n, width).tolist() for table, width in zip(rest, widths, strict=False)],
        rest[-1].reshape(members, MEMBER_COLUMNS).tolist(),
    )
