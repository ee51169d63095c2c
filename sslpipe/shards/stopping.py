"""Work in threads and processes that ends soon after nobody waits for it: a Ctrl-C, an error.

A job is stopped by an exception at its next line of Python, so its `finally` and its context
managers tidy up; a call into C, a read or a decoder, comes to its end before.
"""

import ctypes
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


class JobStopped(BaseException):
    """Nobody waits for this job any more. No `except Exception` of a job takes it for a fault."""


class Stoppable:
    """Runs jobs, each in the thread that brings it, until all of them are told to stop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads: set[int] = set()  # in which a job runs now
        self._stopped = False

    def run(self, func: Callable[[T], R], item: T) -> R:
        """Do a job.

        Raises:
            JobStopped: `stop` was called before its end.
        """
        thread = threading.get_ident()
        with self._lock:
            if self._stopped:
                raise JobStopped
            self._threads.add(thread)
        try:
            return func(item)
        finally:
            with self._lock:
                self._threads.discard(thread)

    def stop(self) -> None:
        """Have all jobs end; those that come later do not begin."""
        with self._lock:  # so it is raised inside of `run`, and never behind it
            self._stopped = True
            for thread in self._threads:
                raise_in(thread)


def raise_in(thread: int) -> None:
    """Have a thread of this process raise JobStopped when it is at Python code again."""
    number, kind = ctypes.c_ulong(thread), ctypes.py_object(JobStopped)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(number, kind)


def in_threads(func: Callable[[T], R], items: Iterable[T], threads: int) -> Generator[R]:
    """Results in order. When the iterator is closed early, jobs that run are stopped."""
    jobs = Stoppable()
    with ThreadPoolExecutor(threads) as pool:
        try:
            yield from pool.map(partial(jobs.run, func), items)
        except Exception:  # what runs comes to its end: stopped in `open`, it leaves a file open
            raise
        except BaseException:
            jobs.stop()
            raise


def left_behind(func: Callable[[], R]) -> R:
    """Call what answers to no signal until it is done, in a thread that a Ctrl-C leaves behind.

    The thread ends with the process, wherever it is, so it must write nothing to a disk.
    """
    result: Future[R] = Future()

    def call() -> None:
        try:
            result.set_result(func())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return result.result()
