"""One worker, seen from the main process: how it is started, handed files, watched and ended."""

import json
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from ..device.slots import anonymous_file
from ..shards.read.open_tars import LocalTar
from ..shards.read.store import open_files
from .jobs import FileStore, Flown, Job, done_samples
from .reader import TarPlace
from .tasks import File, shard_of
from .worker import FILES, MESSAGE, MOST_FILES, TASK
from .worker_tasks import ShardFile

# imports make no garbage, but Python looks for it 58 times, for a twelfth of their time
START = (
    "import gc; gc.disable(); import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from sslpipe.stream.worker import main; main(*map(int, sys.argv[2:]))"
)
STDERR = 2
GRACE = 2.0  # seconds that a worker has to end by itself


@dataclass(slots=True, eq=False)
class WorkerProcess:
    """A running worker, and the jobs that it was given: the first is in hand."""

    process: "subprocess.Popen[bytes]"
    connection: socket.socket
    ready: bool = False
    jobs: deque[Job] = field(default_factory=deque)
    hung: bool = False
    ears: "select.poll" = field(default_factory=select.poll)  # for it, and for the bell
    _held: dict[File, ShardFile] = field(default_factory=dict)  # what it has, so kept open here
    _since: float = 0.0  # when it was last seen to get on
    _reached: int = 0  # samples of the task in hand that were done then

    def give(self, job: Job, stores: Sequence[FileStore]) -> None:
        """Send a job, after the files of it that are new to the worker.

        Raises:
            OSError: the worker is gone; the job is among its jobs.
            ShardError: a shard cannot be opened; the job is not.
        """
        self._bring(job.task.files, stores)
        if not self.jobs:
            self.begin()
        self.jobs.append(job)
        self.connection.send(TASK + job.task.packed(0))

    def is_at(self, flown: Flown) -> bool:
        """Whether it has some of these jobs."""
        return flown in [job.flown for job in self.jobs]

    def news(self, seconds: float) -> "list[WorkerProcess | None]":
        """Wait for a while, for this worker and the bell (None): who has something to say."""
        mine, found = self.connection.fileno(), self.ears.poll(1000 * seconds)
        return [self if file == mine else None for file, _ in found]

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

    def _bring(self, files: set[File], stores: Sequence[FileStore]) -> None:
        """Hand it those of some shards that are new to it; it lets go of others."""
        new = files.difference(self._held)
        if not new:
            return
        others = [file for file in self._held if file not in files]
        stale = {file for file in others if not is_held(stores, file)}
        spare = max(0, len(self._held) - len(stale) + len(new) - open_files())
        dropped = [*stale, *islice((file for file in others if file not in stale), spare)]
        brought = {file: opened(stores, *shard_of(file)) for file in sorted(new)}
        for file in dropped:
            del self._held[file]
        self._held |= brought
        self._hand(brought, dropped)

    def _hand(self, brought: Mapping[File, ShardFile], dropped: Sequence[File]) -> None:
        """Hand over open shards; distant ones are opened over there."""
        for start in range(0, len(brought), MOST_FILES):
            some = [*islice(brought.items(), start, start + MOST_FILES)]
            handed = [file.tar.file for _, file in some if isinstance(file.tar, LocalTar)]
            told = [
                (number, file.name, file.extensions, without_index(file.tar), tuple(file.place))
                for number, file in some
            ]
            message = FILES + pickle.dumps((told, dropped))
            with suppress(OSError):  # it is dead, which is seen when the task is sent
                socket.send_fds(self.connection, [message], handed)


def start_worker(arena: int, decoders: int, bell: socket.socket) -> WorkerProcess:
    """Start one, of the thread whose end shall end it; see `worker.main` for the files.

    bell: whoever waits for the worker hears it, too.
    """
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
        # a worker has one core: threads for NumPy's matrices would only take longer to start
        env={"OPENBLAS_NUM_THREADS": "1", **os.environ},
        start_new_session=True,  # Ctrl-C is for the main process
    )
    theirs.close()
    worker = WorkerProcess(process, ours)
    for source in (ours, bell):
        worker.ears.register(source, select.POLLIN)
    return worker


def opened(stores: Sequence[FileStore], corpus: int, shard: int) -> ShardFile:
    """A shard of a corpus, opened and checked by its store."""
    store = stores[corpus]
    tar = store.open(shard)
    place = TarPlace(store.beside(shard), tar.index.tar_sha256)
    return ShardFile(store.name(shard), tar.index.extensions, tar, place)


def is_held(stores: Sequence[FileStore], file: File) -> bool:
    """Whether the store of a shard still has it."""
    corpus, shard = shard_of(file)
    return stores[corpus].holds(shard)


def without_index(tar: Any) -> Any:
    """A shard that another process opens by itself; None: it is handed over."""
    return None if isinstance(tar, LocalTar) else tar.reader


def file_of(content: bytes) -> int:
    """An anonymous file: a message holds no more than the system's buffers of sockets."""
    file = anonymous_file()
    with open(file, "wb", closefd=False) as stream:
        stream.write(content)
    return file
