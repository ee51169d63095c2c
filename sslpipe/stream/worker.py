"""A worker: reads, checks and decodes the samples of tasks, each array straight to its place.

It is a fresh interpreter that runs `main` (never a fork, which would copy CUDA and locks; nor
`multiprocessing`, which would import the user's script again), and inherits three descriptors: a
socket for messages, the file of the arena, and one with the decoders. It imports no torch, pydantic
or kornia, so it starts in a fifth of a second. It ends with its parent, however that ends.

`Tasks` is also what works in the caller's process where a recipe says `run.workers: 0`.
"""

import ctypes
import mmap
import os
import pickle
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ..device.buffers import Memory
from ..errors import SampleError
from .reader import MemberPlace, OpenTar, Sample, Wanted, read_sample
from .tasks import (
    ALONE,
    CRC,
    DONE,
    EXT,
    EXTENT,
    FAULT,
    FILE,
    FLAGS,
    HEADER,
    KEY_BYTES,
    LABEL,
    READ,
    RESULT,
    ROW,
    SHORT,
    SIZE,
    START,
    UID,
    Unpacked,
    unpacked,
)

Array = npt.NDArray[Any]
PR_SET_PDEATHSIG = 1
MESSAGE = 1 << 20  # bytes at most
MOST_FILES = 64  # descriptors that come with one message


class Decoder(Protocol):
    """Bytes to an array, as `modalities.Decode` says."""

    def __call__(self, sample: Sample, instructions: Sequence[int], memory: Memory) -> Any: ...


class PartDecode(NamedTuple):
    """How one part of a recipe decodes a sample.

    first: as the device wants it; alone: whole, on the CPU; the same but where a device decodes.
    extensions: of the member that is the part's payload; None: it is the sample's.
    """

    first: Decoder
    alone: Decoder
    extensions: Collection[str] | None = None

    def of(self, sample: Sample) -> Sample:
        """A sample as this part sees it.

        Raises:
            SampleError: it has no member of the part's modality.
        """
        if self.extensions is None:
            return sample
        for ext, data in sample.members.items():
            if ext.rpartition(".")[2] in self.extensions:
                return Sample(sample.uid, sample.key, sample.label, data)
        raise SampleError(f"has no member .{', .'.join(sorted(self.extensions))}")


class ShardFile(NamedTuple):
    """An open shard, as a worker knows it."""

    name: str
    extensions: tuple[str, ...]
    tar: OpenTar


class Failed(NamedTuple):
    """Why a sample of a task is bad. key: None where its header is not what was indexed."""

    row: int  # in the task
    reason: str
    key: str | None


class TaskReport(NamedTuple):
    """What a worker says when a task is done; almost always nothing but its number."""

    number: int
    faults: Sequence[Failed] = ()
    keys: Mapping[int, str] = MappingProxyType({})  # of samples whose key is too long for a result
    error: Exception | None = None  # no fault of a sample: the run cannot go on


class Room:
    """Offers the place in a slot that a task has for an array, as `numpy.empty` would."""

    def __init__(self, memory: npt.NDArray[np.uint8], start: int, size: int) -> None:
        self._memory, self._start, self._size = memory, start, size

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """The place itself if it is large enough, else new memory."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if size > self._size:
            return np.empty(shape, dtype)
        return self._memory[self._start : self._start + size].view(dtype).reshape(shape)

    def put(self, array: Array) -> bool:
        """Have an array there, copied if it is not there yet; False: it does not fit."""
        if array.nbytes > self._size:
            return False
        place = self._memory[self._start : self._start + array.nbytes]
        if array.ctypes.data != place.ctypes.data or not array.flags.c_contiguous:
            place.view(array.dtype).reshape(array.shape)[...] = array
        return True


class Tasks:
    """Does tasks with the decoders of a recipe's parts.

    memory: finds the bytes of a slot. files: open shards by number.
    """

    def __init__(
        self,
        parts: Sequence[PartDecode],
        memory: Callable[[tuple[int, int]], npt.NDArray[np.uint8]],
        files: dict[int, ShardFile],
    ) -> None:
        self._parts, self._memory, self._files = parts, memory, files

    def __call__(self, task: Unpacked) -> TaskReport:
        """Do all samples of a task; their results stand in the slot, the rest in the report."""
        faults: list[Failed] = []
        keys: dict[int, str] = {}
        try:
            for row in range(len(task.samples)):
                self._sample(task, row, faults, keys)
        except Exception as error:  # a shard is gone, or a decoder of the user's is wrong
            return TaskReport(task.number, error=error)
        return TaskReport(task.number, faults, keys)

    def _sample(self, task: Unpacked, row: int, faults: list[Failed], keys: dict[int, str]) -> None:
        """One sample; a SampleError becomes a fault."""
        memory = self._memory(task.slot)
        parts, place = len(self._parts), task.samples[row][-1]
        results = memory[: (place + 1) * parts * RESULT.itemsize].view(RESULT)[-parts:]
        sample = None
        try:
            sample = self._read(task, row)
            write_key(sample.key, results, row, keys)
            for number, part in enumerate(self._parts):
                self._decode(task, row, number, part, sample, results[number])
        except SampleError as error:
            name = self._files[task.samples[row][FILE]].name
            reason = f"{name} {sample.key}: {error}" if sample else str(error)
            faults.append(Failed(row, reason, sample.key if sample else None))
            results["status"] = FAULT

    def _read(self, task: Unpacked, row: int) -> Sample:
        columns = task.samples[row]
        file = self._files[columns[FILE]]
        payload = columns[EXT], columns[START], columns[HEADER], columns[SIZE], columns[CRC]
        places = [payload, *(member[1:] for member in task.members if member[0] == row)]
        names = file.extensions
        members = [MemberPlace(names[ext], *numbers) for ext, *numbers in places]
        extent = tuple(columns[EXTENT : EXTENT + 4])
        wanted = Wanted(
            file.name, columns[ROW], columns[UID], columns[LABEL], columns[FLAGS], extent, members  # type: ignore[arg-type]
        )  # fmt: skip
        return read_sample(file.tar, wanted)

    def _decode(
        self, task: Unpacked, row: int, number: int, part: PartDecode, sample: Sample, result: Any
    ) -> None:
        """Decode one part of a sample to its place, and say what stands there."""
        if task.kind == READ:
            result["status"] = DONE
            return
        room = Room(self._memory(task.slot), *task.rooms[row][number])
        decode = part.alone if task.kind == ALONE else part.first
        data, extent = decode(part.of(sample), task.instructions[number][row], room)
        result["bytes"], result["type"], result["axes"] = data.nbytes, data.dtype.num, data.ndim
        result["shape"][: data.ndim] = data.shape
        result["extents"], result["extent"][: len(extent)] = len(extent), extent
        result["status"] = DONE if room.put(data) else SHORT


def write_key(key: str, results: Any, row: int, keys: dict[int, str]) -> None:
    """The key of a sample, in its first result, or in `keys` if it is too long for that."""
    encoded = key.encode()
    if len(encoded) > KEY_BYTES:
        results[0]["key_bytes"] = -1
        keys[row] = key
        return
    results[0]["key_bytes"] = len(encoded)
    results[0]["key"][: len(encoded)] = np.frombuffer(encoded, np.uint8)


# messages to a worker, by their first byte
FILES, TASK = b"f", b"t"
READY = -1  # in place of a task's number, in a worker's first report
REPORT = struct.Struct("<q")  # the whole of most reports


class HandedTar:
    """A shard that the main process has opened, checked and keeps for as long as we need it."""

    def __init__(self, file: int) -> None:
        self._file = file

    def read(self, start: int, header: int, content: int) -> tuple[bytes, bytes]:
        """Two blocks that lie one after the other; two calls, since cutting one would copy it."""
        return os.pread(self._file, header, start), os.pread(self._file, content, start + header)

    def __del__(self) -> None:
        os.close(self._file)


class MappedSlots:
    """The slots of the main process, mapped when they are first seen."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._mapped: dict[tuple[int, int], npt.NDArray[np.uint8]] = {}

    def __call__(self, slot: tuple[int, int]) -> npt.NDArray[np.uint8]:
        """The bytes of a slot, given its place in the file and its size."""
        found = self._mapped.get(slot)
        if found is None:
            start, size = slot
            found = np.frombuffer(mmap.mmap(self._file, size, offset=start), np.uint8)
            self._mapped[slot] = found
        return found


def main(socket_file: int, arena_file: int, decoders_file: int, parent: int) -> None:
    """Do what comes over the socket until it ends."""
    end_with(parent)
    connection = socket.socket(fileno=socket_file)
    files: dict[int, ShardFile] = {}
    arena = MappedSlots(arena_file)
    with suppress(OSError):  # the main process is gone, or has no more use for us
        try:
            parts = pickle.loads(os.pread(decoders_file, os.fstat(decoders_file).st_size, 0))
        except Exception as error:  # a decoder's module that cannot be imported here
            connection.send(encoded(TaskReport(READY, error=error)))
            return
        connection.send(encoded(TaskReport(READY)))
        tasks = Tasks(parts, arena, files)
        while message := receive(connection, files):
            connection.send(encoded(tasks(unpacked(message[1:]))))


def end_with(parent: int) -> None:
    """Have the kernel end this process with the thread that started it; leave Ctrl-C to that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def receive(connection: socket.socket, files: dict[int, ShardFile]) -> bytes:
    """The next message; those about files are followed at once. Empty: there is no more."""
    while True:
        message, handed, _, _ = socket.recv_fds(connection, MESSAGE, MOST_FILES)
        if message[:1] != FILES:
            return message
        descriptors = iter(handed)
        for number, name, extensions, tar in pickle.loads(message[1:]):
            tar = HandedTar(next(descriptors)) if tar is None else tar
            files[number] = ShardFile(name, extensions, tar)


def encoded(report: TaskReport) -> bytes:
    """A report as a message; with texts only where there are some."""
    head = REPORT.pack(report.number)
    if not (report.faults or report.keys or report.error):
        return head
    error = None if report.error is None else portable(report.error)
    return head + pickle.dumps(([*report.faults], {**report.keys}, error))


def decoded(message: bytes) -> TaskReport:
    """The report of a message."""
    (number,) = REPORT.unpack_from(message)
    if len(message) == REPORT.size:
        return TaskReport(number)
    faults, keys, error = pickle.loads(message[REPORT.size :])
    return TaskReport(number, faults, keys, error)


def portable(error: Exception) -> Exception:
    """An error that the main process can load: it may know less than we do."""
    text = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"in a worker:\n{text}")
    error.add_note(f"in a worker:\n{text}")
    return error
