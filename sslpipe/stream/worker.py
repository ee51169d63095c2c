"""A worker process: what it is told over a socket, and how it ends. Its work is `worker_tasks`.

It is a fresh interpreter that runs `main` (never a fork, which would copy CUDA and locks; nor
`multiprocessing`, which would import the user's script again), and inherits three descriptors: a
socket for messages, the file of the arena, and one with the decoders. It imports no torch, pydantic
or kornia, so it starts in an eighth of a second of CPU. It ends with its parent, however that ends.
"""

import ctypes
import gc
import mmap
import os
import pickle
import signal
import socket
import struct
import sys
import traceback
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from .reader import TarPlace
from .tasks import unpacked
from .worker_tasks import ShardFile, TaskReport, Tasks

PR_SET_PDEATHSIG = 1
# all pages of a slot at once, where the system can: one by one they take twice as long
MAPPED = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
MESSAGE = 1 << 20  # bytes at most
FEW_BYTES = 16_384  # that are copied in the time of a call of the system
MOST_FILES = 64  # descriptors that come with one message

# messages to a worker, by their first byte
FILES, TASK = b"f", b"t"
READY = -1  # in place of a task's number, in a worker's first report
REPORT = struct.Struct("<q")  # the whole of most reports


class HandedTar:
    """A shard that the main process has opened, checked and keeps for as long as we need it."""

    def __init__(self, file: int) -> None:
        self._file = file

    def read(self, start: int, header: int, content: int) -> tuple[bytes, bytes]:
        """Two blocks that lie one after the other, where they are short cut out of one."""
        if content <= FEW_BYTES:
            both = os.pread(self._file, header + content, start)
            return both[:header], both[header:]
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
            pages = mmap.mmap(self._file, size, flags=MAPPED, offset=start)
            found = np.frombuffer(pages, np.uint8)
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
        gc.enable()  # START has turned it off
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
        told, dropped = pickle.loads(message[1:])
        for number in dropped:
            files.pop(number, None)  # closed with its last reference
        for number, name, extensions, tar, place in told:
            tar = HandedTar(next(descriptors)) if tar is None else tar
            files[number] = ShardFile(name, extensions, tar, TarPlace(*place))


def encoded(report: TaskReport) -> bytes:
    """A report as a message; with texts only where there are some."""
    head = REPORT.pack(report.number)
    if not (report.faults or report.keys or report.error):
        return head
    error = None if report.error is None else portable(report.error)
    return head + pickle.dumps(([*report.faults], {**report.keys}, error))


def decoded(message: bytes | memoryview) -> TaskReport:
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
