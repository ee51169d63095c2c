"""Where the jobs of packing run: anything with `imap_unordered`.

`multiprocessing.pool.ThreadPool`, `multiprocessing.Pool` and `ray.util.multiprocessing.Pool` have
it; so has `Processes`, which unlike `multiprocessing.Pool` notices that a worker was killed.
"""

import multiprocessing
import os
import signal
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Protocol, Self

from ...errors import ExtraError, ShardError
from ...process import cores
from ..stopping import Stoppable

GRACE = 2.0  # seconds for jobs to tidy up in
RETRIES = 2  # of a job whose actor of Ray was lost


class Pool(Protocol):
    """What packing needs of a pool."""

    def imap_unordered(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int
    ) -> Iterator[Any]:
        """Call `func` on every item somewhere; results as they come."""


class JobPool(ABC):
    """Threads or processes, as a context manager; left by a Ctrl-C, they stop what they do."""

    def __init__(self, executor: Executor, workers: int) -> None:
        self.executor = executor
        self.ahead = 2 * workers  # enough that none waits, few enough that a stop is quick
        self.pending: set[Future[Any]] = set()

    @abstractmethod
    def job(self, func: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """The function as a job that can be stopped."""

    @abstractmethod
    def stop(self) -> None:
        """Have jobs end that nobody waits for."""

    def imap_unordered(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int = 1
    ) -> Iterator[Any]:
        """Results as they come; items are taken as workers get free, `chunksize` is always 1.

        Raises:
            BrokenProcessPool: a worker was killed.
        """
        job = self.job(func)
        for item in iterable:
            if len(self.pending) >= self.ahead:
                yield from self.done()
            with held_back():
                self.pending.add(self.executor.submit(job, item))
        while self.pending:
            yield from self.done()

    def done(self) -> list[Any]:
        """Wait until some jobs are done, and give their results."""
        done, self.pending = wait(self.pending, return_when=FIRST_COMPLETED)
        return [future.result() for future in done]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None and not issubclass(kind, Exception):  # a Ctrl-C, which cannot wait
            self.stop()
        self.executor.shutdown(cancel_futures=True)


class Threads(JobPool):
    """Does jobs in threads of this process, which end soon when it is stopped."""

    def __init__(self, workers: int) -> None:
        super().__init__(ThreadPoolExecutor(workers), workers)
        self.jobs = Stoppable()

    def job(self, func: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """The function as a job that can be stopped."""
        return partial(self.jobs.run, func)

    def stop(self) -> None:
        """Have jobs end that nobody waits for."""
        self.jobs.stop()


class Processes(JobPool):
    """Spawned processes. A killed worker ends the iteration by an error.

    A script that uses it needs `if __name__ == "__main__":`, as all of multiprocessing does.
    """

    def __init__(self, workers: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        told, self.end = spawn.Pipe(duplex=False)  # its end is what workers are told
        executor = ProcessPoolExecutor(workers, spawn, initializer=begin_worker, initargs=(told,))
        super().__init__(executor, workers)
        self.processes = executor._processes  # by pid, as they come and go

    def job(self, func: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """The function as a job that can be stopped."""
        return partial(do_job, func)

    def stop(self) -> None:
        """Have jobs end that nobody waits for; kill what does not in time, or has not begun."""
        workers = [*self.processes.values()]
        self.end.close()
        late = self.pending
        try:
            late = wait(self.pending, GRACE).not_done
        finally:  # a second Ctrl-C does not wait
            for worker in workers if late else ():
                worker.kill()


@contextmanager
def held_back() -> Iterator[None]:
    """Let a Ctrl-C wait until here: processes that start inherit that none reaches them.

    Else one that is still importing would print a trace of its own.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


JOBS = Stoppable()  # of a worker process


def do_job(func: Callable[[Any], Any], item: Any) -> Any:
    """Do a job in a worker process; a SIGTERM ends it when the job has tidied up."""
    try:
        return JOBS.run(func, item)
    except SystemExit as ended:
        os._exit(int(ended.code or 0))


def end_worker(number: int, frame: FrameType | None) -> None:
    """End a worker process as it handles SIGTERM, without a traceback.

    Raises:
        SystemExit: always.
    """
    sys.exit(128 + number)


def begin_worker(told: Connection) -> None:
    """Let the parent decide on Ctrl-C, end with it when it is killed, and keep to one core.

    Resizing with torch's own threads beside as many processes as cores takes twice the time. Those
    are set by name: jobs of text and sound need no torch, whose import takes seconds.
    """
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end_worker)
    threading.Thread(target=end_with_parent, args=(told,), daemon=True).start()


def end_with_parent(told: Connection) -> None:
    """Stop the job when the parent says so, and end this process when the parent has ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for([parent.sentinel, told])
    JOBS.stop()
    parent.join()
    os._exit(1)


def open_threads(workers: int | None = None) -> AbstractContextManager[Pool]:
    """Threads of this process, one per core unless told; when left, none of them runs any more."""
    return Threads(workers or cores())


def open_pool(workers: int | None, ray: str | None) -> AbstractContextManager[Pool]:
    """Processes, one per core unless told, or the actors of a Ray cluster ("auto" or its address).

    A single worker is a thread of this process.

    Raises:
        ExtraError: Ray is asked for and not installed.
        ShardError: the cluster cannot be reached, or has fewer cores than `workers`.
    """
    if workers is not None and workers < 1:
        raise ShardError(f"workers = {workers}: must be 1 or more")
    if ray is not None:
        return open_ray(workers, ray)
    workers = workers or cores()
    return Processes(workers) if workers > 1 else open_threads(1)


def open_ray(workers: int | None, address: str, *, gpus: int = 0) -> AbstractContextManager[Pool]:
    """The actors of a Ray cluster, with a core and so many GPUs each.

    `workers`: how many; None: as many as the cluster can hold. An actor that is lost is started
    again and its job with it, `RETRIES` times; then the loss is a result, as all that they raise.

    Raises:
        ExtraError: Ray is not installed.
        ShardError: the cluster cannot be reached, or cannot hold so many.
    """
    held = cluster_gpus(address, workers) // gpus if gpus else None
    if held is not None and (workers or 1) > held:
        raise ShardError(
            f"--ray {address}: {workers or 1} actors need a GPU each, and the cluster has {held}; "
            "take fewer workers, or --device cpu"
        )
    # one that asks for no core is put anywhere: all of them on one machine
    each = {"num_cpus": 1, "num_gpus": gpus, "scheduling_strategy": "SPREAD"}
    restarts = {"max_restarts": -1, "max_task_retries": RETRIES}
    with connected(address, workers):
        import ray.util.multiprocessing

        pool: AbstractContextManager[Pool] = ray.util.multiprocessing.Pool(
            workers or held,
            initializer=work_in,
            initargs=(Path.cwd(),),
            ray_remote_args=each | restarts,
        )
    return pool


def work_in(folder: Path) -> None:
    """Let relative names mean what they do where the command was given, if that folder is here."""
    if folder.is_dir():
        os.chdir(folder)


def cluster_gpus(address: str, workers: int | None = None) -> int:
    """Connect to a Ray cluster, of `workers` cores if it is started here; count its GPUs.

    The errors are those of `open_ray`.
    """
    with connected(address, workers):
        import ray

        return int(ray.cluster_resources().get("GPU", 0))


@contextmanager
def connected(address: str, own: int | None) -> Iterator[None]:
    """Connect to a Ray cluster; `own`: cores of one that "local" starts.

    Raises:
        ExtraError: Ray is not installed.
        ShardError: there is no cluster at the address.
    """
    try:
        import ray.util.multiprocessing

        if not ray.is_initialized():
            # what workers print would tear the progress bar; Ray keeps it in its own logs
            size = {"num_cpus": own} if address == "local" else {}
            ray.init(address=address, log_to_driver=False, **size)
        yield
    except ImportError as error:
        raise ExtraError("--ray needs Ray; install it with `pip install sslpipe[ray]`") from error
    except (ConnectionError, ValueError) as error:
        raise ShardError(
            f"--ray {address}: {error}; start a cluster with `ray start --head` or give its address"
        ) from error
