"""Worker processes, seen from the main process: tasks out, reports back, the dead replaced.

One thread talks to all workers; it also starts them, so that the kernel ends them with it. A worker
that dies, or does not get on for `patience` seconds, is replaced and what it had not done is done
again. A sample at which two workers died is a bad sample like any other.
"""

import json
import os
import pickle
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ..device.slots import Slots, anonymous_file
from ..errors import SslpipeError
from ..shards.read.store import LocalTar, ShardStore, open_files
from .tasks import FAULT, FILE, NEW, PLACE, RESULT, ROW, Task, unpacked
from .worker import (
    FILES,
    MESSAGE,
    MOST_FILES,
    READY,
    TASK,
    Failed,
    PartDecode,
    ShardFile,
    TaskReport,
    Tasks,
    decoded,
)

AT_ONCE = 2  # tasks that a worker has: one in hand, one waiting
DEATHS = 2  # of workers at one sample, after which it is the sample's fault
STARTS = 3  # workers that die before one is ready, after which starting them is given up
START = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from sslpipe.stream.worker import main; main(*map(int, sys.argv[2:]))"
)
CLOSED = "workers: are closed; load the pipeline once more"
STDERR = 2
GRACE = 2.0  # seconds that a worker has to end by itself
U8 = npt.NDArray[np.uint8]


class Done(NamedTuple):
    """A task that is done: what its report says; the arrays stand in its slot."""

    task: Task
    faults: Sequence[Failed]
    keys: Mapping[int, str]


class Crew(Protocol):
    """What does tasks: `Workers`, or `InProcess`."""

    def submit(self, tasks: Sequence[Task], memory: U8) -> "Future[list[Done]]":
        """Do tasks whose slot is `memory`; more Done than tasks if a worker died on the way.

        The future raises what is no fault of a sample.
        """
        ...

    def close(self) -> None:
        """Stop; nothing is submitted afterwards."""
        ...


class InProcess:
    """Does tasks at once in the thread that submits them: `run.workers: 0`."""

    def __init__(self, stores: Sequence[ShardStore], parts: Sequence[PartDecode]) -> None:
        self._stores, self._parts = stores, parts

    def submit(self, tasks: Sequence[Task], memory: U8) -> "Future[list[Done]]":
        """Do tasks; the future is done already."""
        future: Future[list[Done]] = Future()
        try:
            future.set_result([self._do(task, memory) for task in tasks])
        except Exception as error:
            future.set_exception(error)
        return future

    def _do(self, task: Task, memory: U8) -> Done:
        files = {n: opened(self._stores, *file) for n, file in enumerate(task.files)}
        do = Tasks(self._parts, lambda _: memory, files)
        report = do(unpacked(task.packed(0, range(len(files)))))
        if report.error:
            raise report.error
        return Done(task, report.faults, report.keys)

    def close(self) -> None:
        """Nothing is open."""


def opened(stores: Sequence[ShardStore], corpus: int, shard: int) -> ShardFile:
    """A shard of a corpus, opened and checked by its store."""
    store = stores[corpus]
    tar = store.open(shard)
    return ShardFile(store.name(shard), tar.index.extensions, tar)


class Flown:
    """Jobs that were submitted together, and what they will have found."""

    def __init__(self, jobs: int) -> None:
        self.future: Future[list[Done]] = Future()
        self._left, self._done = jobs, list[Done]()

    def add(self, done: Sequence[Done]) -> None:
        """One job is done."""
        self._done += done
        self._left -= 1
        if not self._left and not self.future.done():
            self.future.set_result(self._done)

    def fail(self, error: Exception) -> None:
        """One job cannot be done, so all are in vain."""
        if not self.future.done():
            self.future.set_exception(error)


@dataclass(slots=True, eq=False)
class Job:
    """A task that was submitted, with what becomes of it."""

    task: Task
    memory: U8
    flown: Flown
    done: list[Done] = field(default_factory=list)  # of samples at which workers died
    deaths: dict[int, int] = field(default_factory=dict)  # of workers, by the sample's place


@dataclass(slots=True, eq=False)
class Process:
    """A running worker."""

    process: "subprocess.Popen[bytes]"
    connection: socket.socket
    ready: bool = False
    jobs: "deque[Job]" = field(default_factory=deque)  # the first is in hand
    files: dict[tuple[int, int], tuple[int, ShardFile]] = field(default_factory=dict)
    since: float = 0.0  # when it was last seen to get on
    reached: int = 0  # samples of the task in hand that were done then
    hung: bool = False


class Workers:
    """`count` processes that decode with `parts`; see the module.

    Raises:
        SslpipeError: of `submit`'s futures: workers cannot be started, or were closed.
    """

    def __init__(
        self,
        stores: Sequence[ShardStore],
        parts: Sequence[PartDecode],
        slots: Slots,
        *,
        count: int,
        patience: float,
    ) -> None:
        self._stores, self._slots, self._count, self._patience = stores, slots, count, patience
        self._decoders = file_of(pickle.dumps(tuple(parts)))
        self._processes: list[Process] = []
        self._waiting: deque[Job] = deque()
        self._failed_starts = 0
        self._broken: Exception | None = None
        self._lock = threading.Lock()
        self._closing = False
        self._selector = selectors.DefaultSelector()
        self._bell, self._ring = socket.socketpair()
        self._selector.register(self._bell, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="workers", daemon=True)
        self._pid = os.getpid()
        self._thread.start()

    def submit(self, tasks: Sequence[Task], memory: U8) -> "Future[list[Done]]":
        """Queue tasks."""
        flown = Flown(len(tasks))
        with self._lock:
            if self._closing or self._broken:
                flown.fail(self._broken or SslpipeError(CLOSED))
                return flown.future
            self._waiting.extend(Job(task, memory, flown) for task in tasks)
        self._ring.send(b"!")
        return flown.future

    @property
    def pids(self) -> list[int]:
        """Of the workers that run now."""
        return [worker.process.pid for worker in self._processes]

    def close(self) -> None:
        """End the workers and the thread."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
        if os.getpid() == self._pid:
            self._ring.send(b"!")
            self._thread.join()
        for end in (self._bell, self._ring):
            end.close()

    # the thread

    def _run(self) -> None:
        """Serve until closed."""
        try:
            for _ in range(self._count):
                self._start()
            while not self._closing:
                self._serve()
        except Exception as error:
            self._give_up(error)
        finally:
            self._give_up(SslpipeError(CLOSED))
            for worker in list(self._processes):
                self._end(worker)
            self._selector.close()
            os.close(self._decoders)

    def _serve(self) -> None:
        """Wait for news, and deal with it."""
        for key, _ in self._selector.select(min(1.0, self._patience / 4)):
            if key.fileobj is self._bell:
                self._bell.recv(4096)
            else:
                self._hear(key.data)
        for worker in list(self._processes):
            self._watch(worker)
        self._hand_out()

    def _hand_out(self) -> None:
        """Give waiting tasks to those workers that have fewest."""
        while self._waiting:
            free = [w for w in self._processes if w.ready and len(w.jobs) < AT_ONCE]
            if not free:
                return
            worker = min(free, key=lambda w: len(w.jobs))
            with self._lock:
                job = self._waiting.popleft()
            self._send(worker, job)

    def _send(self, worker: Process, job: Job) -> None:
        """Send a task, after the files of it that the worker does not have yet."""
        try:
            numbers = self._files(worker, job.task.files)
        except Exception as error:  # a shard that cannot be opened
            job.flown.fail(error)
            return
        if not worker.jobs:
            worker.since, worker.reached = time.monotonic(), 0
        worker.jobs.append(job)
        try:
            worker.connection.send(TASK + job.task.packed(0, numbers))
        except OSError:
            self._lost(worker)

    def _files(self, worker: Process, files: Sequence[tuple[int, int]]) -> list[int]:
        """What the worker calls some shards; it is handed those that are new to it."""
        held, wanted = worker.files, set(files)
        stale = [f for f in held if f not in wanted and not self._stores[f[0]].holds(f[1])]
        spare = [f for f in held if f not in wanted and f not in stale]
        for file in stale:
            del held[file]
        new = [file for file in dict.fromkeys(files) if file not in held]
        for file in spare[: max(0, len(held) + len(new) - open_files())]:
            del held[file]
        taken = {number for number, _ in held.values()}
        numbers = (number for number in count() if number not in taken)
        for file in new:
            held[file] = next(numbers), opened(self._stores, *file)
        self._hand(worker, [held[file] for file in new])
        return [held[file][0] for file in files]

    def _hand(self, worker: Process, files: Sequence[tuple[int, ShardFile]]) -> None:
        """Hand over open shards; distant ones are opened over there."""
        for start in range(0, len(files), MOST_FILES):
            some = files[start : start + MOST_FILES]
            handed = [file.tar.file for _, file in some if isinstance(file.tar, LocalTar)]
            told = [
                (number, file.name, file.extensions, without_index(file.tar))
                for number, file in some
            ]
            message = [FILES + pickle.dumps(told)]
            try:
                socket.send_fds(worker.connection, message, handed)
            except OSError:
                return  # it is dead, which is seen when the task is sent

    def _hear(self, worker: Process) -> None:
        """Take a report, or learn that the worker is gone."""
        try:
            message = worker.connection.recv(MESSAGE)
        except OSError:
            message = b""
        if not message:
            self._lost(worker)
            return
        report = decoded(message)
        if report.number == READY:
            self._ready(worker, report)
            return
        job = worker.jobs.popleft()
        worker.since, worker.reached = time.monotonic(), 0
        if report.error:
            job.flown.fail(report.error)
        else:
            job.flown.add([*job.done, Done(job.task, report.faults, report.keys)])

    def _ready(self, worker: Process, report: TaskReport) -> None:
        """A worker has the decoders, or cannot load them."""
        worker.ready, self._failed_starts = True, 0
        if report.error:
            self._give_up(report.error)

    def _watch(self, worker: Process) -> None:
        """Kill a worker that has not got on for too long."""
        if not worker.jobs or time.monotonic() - worker.since < self._patience:
            return
        reached = done_samples(worker.jobs[0])
        if reached == worker.reached:
            worker.hung = True
            worker.process.kill()
        worker.since, worker.reached = time.monotonic(), reached

    def _lost(self, worker: Process) -> None:
        """Replace a worker that is gone, and have done again what it had not done."""
        if worker not in self._processes:
            return
        code = self._end(worker)
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= STARTS and not any(w.ready for w in self._processes):
                raise SslpipeError(
                    f"run.workers = {self._count}: {STARTS} workers ended with code {code} before "
                    "they were ready; see what they printed, or set run.workers: 0"
                )
        again = [*worker.jobs]
        if again:
            self._split(again[0], self._reason(worker, code))
        with self._lock:
            self._waiting.extendleft(reversed([job for job in again if len(job.task.samples)]))
        self._start()

    def _reason(self, worker: Process, code: int) -> str:
        """What is said of a sample at which workers die."""
        if worker.hung:
            return (
                f"held a worker for more than {self._patience:g} s; leave it out, or raise "
                "run.patience"
            )
        if code < 0:
            return f"crashed the decoder (signal {-code}, {signal.Signals(-code).name})"
        return f"ended the decoder's process (exit code {code})"

    def _split(self, job: Job, reason: str) -> None:
        """Take note at which sample of a task a worker died; it may be the sample's fault.

        All others are done again: their faults and long keys died with the worker.
        """
        reached, results = done_samples(job), results_of(job)
        if reached < len(results):
            place = int(job.task.samples[reached, PLACE])
            job.deaths[place] = job.deaths.get(place, 0) + 1
            if job.deaths[place] >= DEATHS:
                key = key_of(results[reached, 0])
                told = f"{self._named(job.task, reached, key)}: {reason}"
                job.done.append(Done(job.task.rest([reached]), [Failed(0, told, key)], {}))
                table_of(job.memory, place + 1, results.shape[1])[place]["status"] = FAULT
                job.task = job.task.rest([row for row in range(len(results)) if row != reached])
        forget(job)
        if not len(job.task.samples):
            job.flown.add(job.done)

    def _named(self, task: Task, row: int, key: str | None) -> str:
        """A sample of a task, as other faults name theirs."""
        corpus, shard = task.files[task.samples[row, FILE]]
        known = f"sample {task.samples[row, ROW]}" if key is None else key
        return f"{self._stores[corpus].name(shard)} {known}"

    def _give_up(self, error: Exception) -> None:
        """Have every job fail, now and later."""
        with self._lock:
            self._broken = self._broken or error
            jobs = [*self._waiting, *(job for worker in self._processes for job in worker.jobs)]
            self._waiting.clear()
        for job in jobs:
            job.flown.fail(error)

    def _start(self) -> None:
        """Start a worker and give it the decoders."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            ours.setsockopt(socket.SOL_SOCKET, option, MESSAGE)
            theirs.setsockopt(socket.SOL_SOCKET, option, MESSAGE)
        inherited = theirs.fileno(), self._slots.file, self._decoders
        arguments = [json.dumps(sys.path), *map(str, (*inherited, os.getpid()))]
        process = subprocess.Popen(
            [sys.executable, "-c", START, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=STDERR,  # what a decoder prints must not get into the output of a command
            pass_fds=inherited,
            start_new_session=True,  # Ctrl-C is for the main process
        )
        theirs.close()
        worker = Process(process, ours)
        self._processes.append(worker)
        self._selector.register(ours, selectors.EVENT_READ, worker)

    def _end(self, worker: Process) -> int:
        """Kill a worker, and forget it; its exit code."""
        self._processes.remove(worker)
        self._selector.unregister(worker.connection)
        worker.connection.close()
        if not (self._closing or worker.hung):
            # whoever closed the connection is about to end, by itself or by a signal
            with suppress(subprocess.TimeoutExpired):
                return worker.process.wait(GRACE)
        worker.process.kill()
        return worker.process.wait()


def file_of(content: bytes) -> int:
    """An anonymous file: a message holds no more than the system's buffers of sockets."""
    file = anonymous_file()
    with open(file, "wb", closefd=False) as stream:
        stream.write(content)
    return file


def results_of(job: Job) -> npt.NDArray[np.void]:
    """(n, P) results of a job's samples, a copy of those in the slot if not all are asked for."""
    parts = job.task.rooms.shape[1]
    places = job.task.samples[:, PLACE]
    return table_of(job.memory, int(places.max()) + 1, parts)[places]


def table_of(memory: U8, samples: int, parts: int) -> npt.NDArray[np.void]:
    """(samples, parts) results at the head of a slot."""
    table: npt.NDArray[np.void] = memory[: samples * parts * RESULT.itemsize].view(RESULT)
    return table.reshape(samples, parts)


def done_samples(job: Job) -> int:
    """How many samples of a task are done, in their order."""
    new = (results_of(job)["status"] == NEW).any(1)
    return int(new.argmax()) if new.any() else len(new)


def forget(job: Job) -> None:
    """Make all results of a job new again."""
    if len(job.task.samples):
        places, parts = job.task.samples[:, PLACE], job.task.rooms.shape[1]
        table_of(job.memory, int(places.max()) + 1, parts)["status"][places] = NEW


def key_of(result: Any) -> str | None:
    """The key of a sample as its first result has it; None: it is not known, or too long."""
    size = int(result["key_bytes"])
    return bytes(result["key"][:size]).decode() if size > 0 else None


def without_index(tar: Any) -> Any:
    """A shard that another process opens by itself; None: it is handed over."""
    return None if isinstance(tar, LocalTar) else tar.reader
