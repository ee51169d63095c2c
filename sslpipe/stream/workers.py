"""Worker processes, seen from the main process: tasks out, reports back, the dead replaced.

Whoever submits tasks sends them, and whoever waits for some talks to all workers meanwhile: a
thread that did it for them would be woken by each of its messages, and wake them in its turn. One
thread only starts workers, since the kernel ends them with the thread that did. A worker that dies,
or does not get on for `patience` seconds, is replaced and what it had not done is done again. A
sample at which two workers died is a bad sample like any other.
"""

import os
import pickle
import selectors
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue

import numpy as np
import numpy.typing as npt

from ..device.slots import Slots
from ..errors import SslpipeError
from .jobs import Done, FileStore, Flown, Job, blame
from .part_decode import PartDecode
from .tasks import Task
from .worker import MESSAGE, READY, REPORT, decoded
from .worker_process import WorkerProcess, file_of, start_worker
from .worker_tasks import TaskReport

AT_ONCE = 2  # tasks that a worker has: one in hand, one waiting
DEATHS = 2  # of workers at one sample, after which it is the sample's fault
KILLS = 5  # the same if somebody else killed them: mostly a person, or the system short of memory
STARTS = 3  # workers that die before they are ready, after which starting them is given up
CLOSED = "workers: are closed; load the pipeline once more"
INTERRUPTED = "workers: were interrupted in the middle of it; load the pipeline once more"
U8 = npt.NDArray[np.uint8]


class Workers:
    """`count` processes that decode with `parts`; see the module. Safe in threads.

    Raises:
        SslpipeError: of what was submitted: workers cannot be started, or were closed.
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
        self._lock = threading.Lock()  # of what is waiting, and whether more may be
        self._talking = threading.Lock()  # whoever has it talks to workers
        self._closing = False
        self._selector = selectors.DefaultSelector()
        # used again: a megabyte that is asked for anew takes four times as long as hearing it
        self._heard = memoryview(bytearray(MESSAGE))
        self._bell, self._ring = socket.socketpair()
        self._selector.register(self._bell, selectors.EVENT_READ)
        self._asked: SimpleQueue[bool] = SimpleQueue()  # for one more worker; False: for none
        self._start_error: Exception | None = None
        self._starter = threading.Thread(target=self._start, name="workers", daemon=True)
        self._pid = os.getpid()
        self._starter.start()
        for _ in range(count):
            self._asked.put(True)

    def submit(self, tasks: Sequence[Task], memory: U8) -> Flown:
        """Send tasks to workers that have few; the others wait until somebody attends."""
        flown = Flown(len(tasks), self._attend)
        with self._lock:
            if self._closing or self._broken:
                flown.fail(self._broken or SslpipeError(CLOSED))
                return flown
            self._waiting.extend(Job(task, memory, flown) for task in tasks)
        if not self._talking.acquire(blocking=False):
            self._ring.send(b"!")
            return flown
        try:
            self._wholly(self._hand_out)
        finally:
            self._talking.release()
        return flown

    @property
    def pids(self) -> list[int]:
        """Of the workers that run now."""
        return [worker.process.pid for worker in self._processes]

    def close(self) -> None:
        """End the workers and the thread that starts them."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
        if os.getpid() == self._pid:
            self._ring.send(b"!")
            with self._talking:  # who has waited learns that it was in vain
                self._end_all()
        for end in (self._bell, self._ring):
            end.close()

    # in the thread of its own

    def _start(self) -> None:
        """Start workers, as many as are asked for."""
        while self._asked.get():
            try:
                worker = start_worker(self._slots.file, self._decoders, self._bell)
            except Exception as error:
                self._start_error = error
                self._ring.send(b"!")
            else:
                self._processes.append(worker)
                self._selector.register(worker.connection, selectors.EVENT_READ, worker)

    # in that of whoever talks

    def _attend(self, flown: Flown) -> None:
        """Talk to workers until some tasks have ended."""
        with self._talking:
            while not flown.ended:
                self._wholly(partial(self._deal_with, self._heard_of(flown)))

    def _heard_of(self, flown: Flown) -> Sequence[WorkerProcess | None]:
        """Wait for news: who has some; None: the bell has rung.

        Where no task waits to be given to whoever is free, one worker at some tasks of `flown` is
        enough: it would be waited for anyway, and to be woken costs more than to hear.
        """
        pause = min(1.0, self._patience / 4)
        if not self._waiting:
            for worker in reversed(self._processes):  # who was given its task last
                if worker.is_at(flown):
                    return worker.news(pause)
        return [key.data for key, _ in self._selector.select(pause)]

    def _wholly(self, work: Callable[[], None]) -> None:
        """Do all of some work; where it fails, or is interrupted, no task goes on."""
        try:
            work()
        except Exception as error:
            self._give_up(error)
        except BaseException:
            self._give_up(SslpipeError(INTERRUPTED))
            raise

    def _deal_with(self, news: Sequence[WorkerProcess | None]) -> None:
        """Hear those who have something to say, and have all of them go on."""
        for worker in news:
            if worker:
                self._hear(worker)
            else:
                self._bell.recv(4096)
        if self._closing or self._start_error:
            self._give_up(self._start_error or SslpipeError(CLOSED))
        if not news:  # who hangs is waited for in the end, and nobody else says anything then
            for worker in list(self._processes):
                worker.watch(self._patience)
        self._hand_out()

    def _hand_out(self) -> None:
        """Give waiting tasks to those workers that have fewest."""
        while self._waiting:
            ready = [worker for worker in self._processes if worker.ready]
            worker = min(ready, key=lambda worker: len(worker.jobs), default=None)
            if worker is None or len(worker.jobs) >= AT_ONCE:
                return
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
        try:
            size = worker.connection.recv_into(self._heard)
        except OSError:
            size = 0
        if not size:
            self._lost(worker)
            return
        if size > REPORT.size or not worker.ready:
            self._read(worker, decoded(self._heard[:size]))
            return
        worker.begin()
        job = worker.jobs.popleft()
        job.flown.add(job.done)

    def _read(self, worker: WorkerProcess, report: TaskReport) -> None:
        """Take a report that says more than that a task is done."""
        if report.number == READY:
            self._ready(worker, report)
            return
        worker.begin()
        job = worker.jobs.popleft()
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
            blame(again[0], worker.reason(code, self._patience), allowed, self._stores)
        with self._lock:
            self._waiting.extendleft(reversed([job for job in again if len(job.task.table)]))
        self._asked.put(True)

    def _give_up(self, error: Exception) -> None:
        """Have every job fail, now and later."""
        with self._lock:
            self._broken = self._broken or error
            jobs = [*self._waiting, *(job for worker in self._processes for job in worker.jobs)]
            self._waiting.clear()
        for job in jobs:
            job.flown.fail(error)

    def _end_all(self) -> None:
        """End all workers, of which the starting thread starts no more."""
        self._give_up(SslpipeError(CLOSED))
        self._asked.put(False)
        self._starter.join()
        for worker in self._processes:
            worker.process.kill()  # all of them first: each takes a while to give back memory
        for worker in list(self._processes):
            self._end(worker)
        self._selector.close()
        os.close(self._decoders)

    def _end(self, worker: WorkerProcess) -> int:
        """End a worker, and forget it; its exit code."""
        self._processes.remove(worker)
        self._selector.unregister(worker.connection)
        return worker.end(at_once=self._closing)
