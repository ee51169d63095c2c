"""One worker, seen from the main process: how it is started, handed files, watched and ended."""

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any

from ..device.slots import anonymous_file
from ..shards.read.open_tars import LocalTar
from ..shards.read.store import ShardStore, open_files
from .jobs import Job, done_samples
from .reader import TarPlace
from .worker import FILES, MESSAGE, MOST_FILES, TASK
from .worker_tasks import ShardFile

START = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from sslpipe.stream.worker import main; main(*map(int, sys.argv[2:]))"
)
STDERR = 2
GRACE = 2.0  # seconds that a worker has to end by itself
File = tuple[int, int]  # corpus, shard


@dataclass(slots=True, eq=False)
class WorkerProcess:
    """A running worker, and the jobs that it was given: the first is in hand."""

    process: "subprocess.Popen[bytes]"
    connection: socket.socket
    ready: bool = False
    jobs: deque[Job] = field(default_factory=deque)
    hung: bool = False
    _files: dict[File, int] = field(default_factory=dict)  # what it calls the shards that it has
    _held: dict[int, ShardFile] = field(default_factory=dict)  # so that they stay open here
    _since: float = 0.0  # when it was last seen to get on
    _reached: int = 0  # samples of the task in hand that were done then

    def give(self, job: Job, stores: Sequence[ShardStore]) -> None:
        """Send a job, after the files of it that are new to the worker.

        Raises:
            OSError: the worker is gone; the job is among its jobs.
            ShardError: a shard cannot be opened; the job is not.
        """
        numbers = self._numbers(job.task.files, stores)
        if not self.jobs:
            self.begin()
        self.jobs.append(job)
        self.connection.send(TASK + job.task.packed(0, numbers))

    def begin(self) -> None:
        """Take note that it is at the next task."""
        self._since, self._reached = time.monotonic(), 0

    def watch(self, patience: float) -> None:
        """Kill it if it has not got on for `patience` seconds."""
        if not self.jobs or time.monotonic() - self._since < patience:
            return
        reached = done_samples(self.jobs[0].task, self.jobs[0].memory)
        if reached == self._reached:
            self.hung = True
            self.process.kill()
        self._since, self._reached = time.monotonic(), reached

    def end(self, *, at_once: bool) -> int:
        """Its exit code, once it has ended; at_once: by force."""
        self.connection.close()
        if not (at_once or self.hung):
            # whoever closed the connection is about to end, by itself or by a signal
            with suppress(subprocess.TimeoutExpired):
                return self.process.wait(GRACE)
        self.process.kill()
        return self.process.wait()

    def reason(self, code: int, patience: float) -> str:
        """What is said of a sample at which it ended with `code`."""
        if self.hung:
            return (
                f"held a worker for more than {patience:g} s; leave it out, or raise run.patience"
            )
        if code < 0:
            return f"crashed the decoder (signal {-code}, {signal.Signals(-code).name})"
        return f"ended the decoder's process (exit code {code})"

    def _numbers(self, files: Sequence[File], stores: Sequence[ShardStore]) -> list[int]:
        """What it calls some shards; it is handed those that are new, and lets go of others."""
        wanted = dict.fromkeys(files)
        new = [file for file in wanted if file not in self._files]
        if new:
            others = [file for file in self._files if file not in wanted]
            stale = [f for f in others if not stores[f[0]].holds(f[1])]
            spare = max(0, len(self._files) - len(stale) + len(new) - open_files())
            unused = [*stale, *islice((f for f in others if f not in stale), spare)]
            dropped = [self._files.pop(file) for file in unused]
            for number in dropped:
                del self._held[number]
            free = (number for number in count() if number not in self._held)
            for file in new:
                number = next(free)
                self._held[number] = opened(stores, *file)
                self._files[file] = number
            self._hand([self._files[file] for file in new], dropped)
        return [self._files[file] for file in files]

    def _hand(self, numbers: Sequence[int], dropped: Sequence[int]) -> None:
        """Hand over open shards; distant ones are opened over there."""
        for start in range(0, len(numbers), MOST_FILES):
            some = {number: self._held[number] for number in numbers[start : start + MOST_FILES]}
            handed = [file.tar.file for file in some.values() if isinstance(file.tar, LocalTar)]
            told = [
                (number, file.name, file.extensions, without_index(file.tar), tuple(file.place))
                for number, file in some.items()
            ]
            message = FILES + pickle.dumps((told, dropped))
            with suppress(OSError):  # it is dead, which is seen when the task is sent
                socket.send_fds(self.connection, [message], handed)


def start_worker(arena: int, decoders: int) -> WorkerProcess:
    """Start one, of the thread whose end shall end it; see `worker.main` for the files."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        ours.setsockopt(socket.SOL_SOCKET, option, MESSAGE)
        theirs.setsockopt(socket.SOL_SOCKET, option, MESSAGE)
    inherited = theirs.fileno(), arena, decoders
    arguments = [json.dumps(sys.path), *map(str, (*inherited, os.getpid()))]
    process = subprocess.Popen(
        [sys.executable, "-c", START, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=STDERR,  # what a decoder prints must not get into the output of a command
        pass_fds=inherited,
        start_new_session=True,  # Ctrl-C is for the main process
    )
    theirs.close()
    return WorkerProcess(process, ours)


def opened(stores: Sequence[ShardStore], corpus: int, shard: int) -> ShardFile:
    """A shard of a corpus, opened and checked by its store."""
    store = stores[corpus]
    tar = store.open(shard)
    place = TarPlace(store.beside(shard), tar.index.tar_sha256)
    return ShardFile(store.name(shard), tar.index.extensions, tar, place)


def without_index(tar: Any) -> Any:
    """A shard that another process opens by itself; None: it is handed over."""
    return None if isinstance(tar, LocalTar) else tar.reader


def file_of(content: bytes) -> int:
    """An anonymous file: a message holds no more than the system's buffers of sockets."""
    file = anonymous_file()
    with open(file, "wb", closefd=False) as stream:
        stream.write(content)
    return file
