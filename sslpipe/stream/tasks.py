"""What goes between the main process and its workers: tables of plain numbers, many samples each.

    main process -> worker   a Task: which samples, where they lie, where their arrays shall go
    worker -> main process   a Result of each sample and part, in the slot; texts for faults only

A slot begins with the table of results, (samples, parts); the arrays lie behind it.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
Kind = int
File = int  # a shard of a corpus, the same number for all workers: see `file_number`
# decode as the device wants it; decode whole, here; only read; find extents that no index tells;
# decode as the device wants it, but leave out what no view reads: for shares that nobody looks at
DECODE, ALONE, READ, MEASURE, TRIMMED = range(5)

# types of arrays that can be sent, by the names that NumPy and torch have in common
SENT = "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "bool"
NEW, DONE, FAULT, SHORT = 0, 1, 2, 3  # status; SHORT: the array needs more room than it was given
KEY_BYTES = 110  # of a key that fits into a result; others come as text
RESULT = np.dtype(
    [
        ("status", "<i2"),
        ("type", "<i2"),  # NumPy's number of the array's type
        ("axes", "<i2"),
        ("extents", "<i2"),  # how many numbers the extent has
        ("bytes", "<i8"),  # that the array takes
        ("shape", "<i8", 4),
        ("extent", "<i8", 4),
        ("key_bytes", "<i2"),  # -1: it does not fit; 0: not known
        ("key", f"S{KEY_BYTES}"),  # zeros behind it
    ]
)
# the same up to the key, of which the first result of a sample knows before it is decoded: a field
# of a NumPy record takes as long as all of a struct
RESULT_HEAD, RESULT_KEY = struct.Struct("<hhhhq4q4q"), struct.Struct(f"<h{KEY_BYTES}s")
KEY_AT = RESULT_HEAD.size + 2  # behind its size
# a result as words of eight bytes, the first of which is its status, type, axes and extents: plain
# arrays are looked at in a third of the time
WORDS = RESULT.itemsize // 8
SHAPE_WORD, EXTENT_WORD = 2, 6

# columns of a sample in a task; its payload first
FILE, ROW, UID, LABEL, FLAGS, EXTENT, START, HEADER, SIZE, CRC, EXT, PLACE = (
    *range(6),
    *range(9, 15),
)
COLUMNS = 15
ROOM = COLUMNS  # behind them, for each part: where in the slot its array begins, and its bytes
# columns of a member that is read beside the payload: the sample's place in the task, then where
MEMBER_COLUMNS = 6
HEAD = struct.Struct("<qqqqqqq")  # task, kind, slot start, slot bytes, samples, parts, members


def file_number(corpora: I64, shards: I64) -> I64:
    """The numbers of some shards of corpora among all files."""
    return corpora << 32 | shards


def shard_of(file: File) -> tuple[int, int]:
    """The corpus and the shard of a file."""
    return file >> 32, file & (1 << 32) - 1


@dataclass(slots=True)
class Task:
    """Some samples of a share, for one worker.

    table: (n, W) of the samples: COLUMNS of each, of which PLACE counts in the results of the slot;
    then, from ROOM on, the place and the bytes of the array of each part; then
    the instructions of each part, `widths` numbers, read by its decoder alone.
    members: (m, MEMBER_COLUMNS) of other members that are wanted.
    """

    kind: Kind
    slot: tuple[int, int]
    table: I64
    widths: tuple[int, ...]
    members: I64

    @property
    def files(self) -> set[File]:
        """The files in which its samples lie."""
        return {*self.table[:, FILE].tolist()}

    def packed(self, number: int) -> bytes:
        """Give the bytes that a worker is sent."""
        sizes = len(self.table), len(self.widths), len(self.members)
        widths = struct.pack(f"<{len(self.widths)}q", *self.widths)
        tables = self.table.tobytes(), self.members.tobytes()
        return b"".join((HEAD.pack(number, self.kind, *self.slot, *sizes), widths, *tables))

    def rest(self, rows: Sequence[int]) -> "Task":
        """The same task of some of its samples."""
        at = np.array(rows, dtype=np.int64)
        renumbered = np.full(len(self.table), -1)
        renumbered[at] = np.arange(len(at))
        members = self.members.copy()
        members[:, 0] = renumbered[members[:, 0]] if len(members) else members[:, 0]
        kept = members[members[:, 0] >= 0]
        return Task(self.kind, self.slot, self.table[at], self.widths, kept)


class Unpacked(NamedTuple):
    """A task as its worker reads it: lists of Python numbers, which are quicker one by one.

    told: where in a row of the table the instructions of each part stand.
    """

    number: int
    kind: Kind
    slot: tuple[int, int]
    table: list[list[int]]
    told: list[slice]
    members: list[list[int]]


def unpacked(message: bytes) -> Unpacked:
    """The task of a message."""
    number, kind, start, size, n, parts, members = HEAD.unpack_from(message)
    numbers = np.frombuffer(message, np.int64, offset=HEAD.size)
    ends = list(accumulate(numbers[:parts].tolist(), initial=COLUMNS + 2 * parts))
    behind = parts + n * ends[-1]
    return Unpacked(
        number,
        kind,
        (start, size),
        numbers[parts:behind].reshape(n, ends[-1]).tolist(),
        [slice(*pair) for pair in pairwise(ends)],
        numbers[behind:].reshape(members, MEMBER_COLUMNS).tolist(),
    )
