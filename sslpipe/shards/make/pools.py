"""Where the jobs of packing run: anything with `imap_unordered`.

`multiprocessing.pool.ThreadPool`, `multiprocessing.Pool` and `ray.util.multiprocessing.Pool` have
it; so has `Processes`, which unlike `multiprocessing.Pool` notices that a worker was killed.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from ...errors import ExtraError, ShardError
from ...process import cores

RETRIES = 2  # of a job whose actor of Ray was lost


class Pool(Protocol):
    """What packing needs of a pool."""

    def imap_unordered(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int
    ) -> Iterator[Any]:
        """Call `func` on every item somewhere; results as they come."""


class Processes:
    """Spawned processes, as a context manager. A killed worker ends the iteration by an error.

    A script that uses it needs `if __name__ == "__main__":`, as all of multiprocessing does.
    """

    def __init__(self, workers: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.executor = ProcessPoolExecutor(workers, spawn, initializer=begin_worker)
        self.ahead = 2 * workers  # enough that none waits, few enough that a stop is quick

    def imap_unordered(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int = 1
    ) -> Iterator[Any]:
        """Results as they come; items are taken as workers get free, `chunksize` is always 1.

        Raises:
            BrokenProcessPool: a worker was killed.
        """
        pending: set[Future[Any]] = set()
        for item in iterable:
            if len(pending) >= self.ahead:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
            with held_back():
                pending.add(self.executor.submit(func, item))
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.executor.shutdown(cancel_futures=True)


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


def begin_worker() -> None:
    """Let the parent decide on Ctrl-C, end with it when it is killed, and keep to one core.

    Resizing with torch's own threads beside as many processes as cores takes twice the time.
    """
    import torch  # in the worker only, where jobs need it anyway

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """Wait for the end of the parent process, then end this one."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def open_threads(workers: int | None = None) -> Iterator[Pool]:
    """Threads of this process, one per core unless told; when left, none of them runs any more."""
    pool = ThreadPool(workers or cores())
    try:
        yield pool
    finally:
        pool.terminate()
        pool.join()


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
    """Connect to a Ray cluster; `own`: cores of one that "local" starts. Errors of `open_ray`."""
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
