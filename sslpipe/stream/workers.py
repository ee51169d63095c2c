"""Worker processes, seen from the main process: tasks out, reports back, the dead replaced.

One thread talks to all workers; it also starts them, so that the kernel ends them with it. A worker
that dies, or does not get on for `patience` seconds, is replaced and what it had not done is done
again. A sample at which two workers died is a bad sample like any other.
"""

import os
import pickle
import selectors
import signal
import socket
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..device.slots import Slots
from ..errors import SslpipeError
from .jobs import Done, Flown, Job, done_samples, forget, key_of, results_of, table_of
from .part_decode import PartDecode
from .tasks import FAULT, FILE, PLACE, ROW, Task, shard_of, unpacked
from .worker import MESSAGE, READY, decoded
from .worker_process import FileStore, WorkerProcess, file_of, opened, start_worker
from .worker_tasks import Failed, TaskReport, Tasks

AT_ONCE = 2  # tasks that a worker has: one in hand, one waiting
DEATHS = 2  # of workers at one sample, after which it is the sample's fault
KILLS = 5  # the same if somebody else killed them: mostly a person, or the system short of memory
STARTS = 3  # workers that die before they are ready, after which starting them is given up
CLOSED = "workers: are closed; load the pipeline once more"
U8 = npt.NDArray[np.uint8]


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

    def __init__(self, stores: Sequence[FileStore], parts: Sequence[PartDecode]) -> None:
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
        files = {file: opened(self._stores, *shard_of(file)) for file in sorted(task.files)}
        do = Tasks(self._parts, lambda _: memory, files)
        report = do(unpacked(task.packed(0)))
        if report.error:
            raise report.error
        return Done(task, report.faults, report.keys)

    def close(self) -> None:
        """Nothing is open."""


class Workers:
    """`count` processes that decode with `parts`; see the module.

    Raises:
        SslpipeError: of `submit`'s futures: workers cannot be started, or were closed.
    """

    def __init__(
        self,
        stores: Sequence[FileStore],
        parts: Sequence[PartDecode],
        slots: Slots,
        *,
        count: int,
        patience: float,
    ) -> None:
        self._stores, self._slots, self._count, self._patience = stores, slots, count, patience
        self._decoders = file_of(pickle.dumps(tuple(parts)))
        self._processes: list[WorkerProcess] = []
        self._waiting: deque[Job] = deque()
        self._failed_starts = 0
        self._broken: Exception | None = None
        self._lock = threading.Lock()
        self._closing = False
        self._selector = selectors.DefaultSelector()
        # used again: a megabyte that is asked for anew takes four times as long as hearing it
        self._heard = memoryview(bytearray(MESSAGE))
        self._bell, self._ring = socket.socketpair()
        self._selector.register(self._bell, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="workers", daemon=True)
        self._pid = os.getpid()
        self._thread.start()

    def submit(self, tasks: Sequence[Task], memory: U8) -> "Future[list[Done]]":
        """Put tasks into the queue of the workers."""
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
            for worker in self._processes if self._closing else ():
                worker.process.kill()  # all of them first: each takes a while to give back memory
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
            worker.watch(self._patience)
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

    def _send(self, worker: WorkerProcess, job: Job) -> None:
        """Send a task to a worker, which may turn out to be gone."""
        try:
            worker.give(job, self._stores)
        except OSError:
            self._lost(worker)
        except Exception as error:  # a shard that cannot be opened
            job.flown.fail(error)

    def _hear(self, worker: WorkerProcess) -> None:
        """Take a report, or learn that the worker is gone."""
        size = 0
        with suppress(OSError):
            size = worker.connection.recv_into(self._heard)
        if not size:
            self._lost(worker)
            return
        report = decoded(self._heard[:size])
        if report.number == READY:
            self._ready(worker, report)
            return
        job = worker.jobs.popleft()
        worker.begin()
        if report.error:
            job.flown.fail(report.error)
        else:
            job.flown.add([*job.done, Done(job.task, report.faults, report.keys)])

    def _ready(self, worker: WorkerProcess, report: TaskReport) -> None:
        """A worker has the decoders, or cannot load them."""
        worker.ready, self._failed_starts = True, 0
        if report.error:
            self._give_up(report.error)

    def _lost(self, worker: WorkerProcess) -> None:
        """Replace a worker that is gone, and have done again what it had not done."""
        if worker not in self._processes:
            return
        code = self._end(worker)
        if self._broken:  # by decoders that cannot be loaded: the next worker could not, either
            return
        if not worker.ready:
            self._failed_starts += 1
            # those whom somebody else kills may well start the next time
            allowed = KILLS * self._count if code == -signal.SIGKILL else STARTS
            if self._failed_starts >= allowed and not any(w.ready for w in self._processes):
                raise SslpipeError(
                    f"run.workers = {self._count}: {self._failed_starts} workers ended with code "
                    f"{code} before they were ready; see what they printed, or set run.workers: 0"
                )
        again = [*worker.jobs]
        if again:
            by_others = code == -signal.SIGKILL and not worker.hung
            allowed = KILLS if by_others else DEATHS
            self._split(again[0], worker.reason(code, self._patience), allowed)
        with self._lock:
            self._waiting.extendleft(reversed([job for job in again if len(job.task.table)]))
        self._start()

    def _split(self, job: Job, reason: str, allowed: int) -> None:
        """Take note at which sample of a task a worker died; it may be the sample's fault.

        All others are done again: their faults and long keys died with the worker.
        """
        reached, results = done_samples(job.task, job.memory), results_of(job.task, job.memory)
        if reached < len(results):
            place = int(job.task.table[reached, PLACE])
            job.deaths[place] = job.deaths.get(place, 0) + 1
            if job.deaths[place] >= allowed:
                key = key_of(results[reached, 0])
                told = f"{self._named(job.task, reached, key)}: {reason}"
                job.done.append(Done(job.task.rest([reached]), [Failed(0, told, key)], {}))
                table_of(job.memory, place + 1, results.shape[1])[place]["status"] = FAULT
                job.task = job.task.rest([row for row in range(len(results)) if row != reached])
        forget(job.task, job.memory)
        if not len(job.task.table):
            job.flown.add(job.done)

    def _named(self, task: Task, row: int, key: str | None) -> str:
        """A sample of a task, as other faults name theirs."""
        corpus, shard = shard_of(int(task.table[row, FILE]))
        known = f"sample {task.table[row, ROW]}" if key is None else key
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
        """Start a worker."""
        worker = start_worker(self._slots.file, self._decoders)
        self._processes.append(worker)
        self._selector.register(worker.connection, selectors.EVENT_READ, worker)

    def _end(self, worker: WorkerProcess) -> int:
        """End a worker, and forget it; its exit code."""
        self._processes.remove(worker)
        self._selector.unregister(worker.connection)
        return worker.end(at_once=self._closing)
