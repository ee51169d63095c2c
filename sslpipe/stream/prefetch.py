"""Make the next steps ahead of time, in one thread; the result never depends on it."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")
FIRST = (5, 6, 8)  # steps that rest: what is made once is made by then
SELDOM = 500  # and every so many


def is_rested(step: int) -> bool:
    """Whether the step after `step` done ones of a process is taken with nothing made ahead.

    So what steps cost beside the pipeline is known, and by that what it takes from the others.
    """
    return step in FIRST or (step > 0 and step % SELDOM == 0)


class Observer(Protocol):
    """Is told, in the consumer's thread, when it asks for a batch and when it has one."""

    def asked(self) -> None:
        """Before the consumer waits."""
        ...

    def given(self) -> None:
        """Before the consumer goes on."""
        ...


class Prefetch(Generic[T]):
    """`make(step)` for consecutive steps, up to `depth` of them ahead; depth 0 makes on demand.

    end: the step that will not be asked for, if that is known: it is not made ahead, nor those
    behind it. An exception of `make(step)` is raised by `take(step)`.
    """

    def __init__(
        self, make: Callable[[int], T], *, depth: int, name: str, end: int | None = None
    ) -> None:
        self._make, self._depth, self._name, self._end = make, depth, name, end
        self._pool: ThreadPoolExecutor | None = None
        self._pending: deque[Future[T]] = deque()
        self._first = 0  # the step of the first pending future
        self._resting = False

    def take(self, step: int) -> T:
        """The result for `step`; asking for another than the next one starts anew there."""
        if self._depth == 0:
            return self._make(step)
        if step != self._first:
            self.reset(step)
        self._fill(1)
        self._first += 1
        future = self._pending.popleft()
        try:
            return future.result()
        finally:
            self._fill(0)

    def _fill(self, least: int) -> None:
        """Begin with what is missing; at rest with no more than `least`."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix=self._name)
        most = least if self._resting else self._depth
        if self._end is not None:
            most = max(least, min(most, self._end - self._first))
        while len(self._pending) < most:
            self._pending.append(self._pool.submit(self._make, self._first + len(self._pending)))

    def rest(self) -> int:
        """Wait for what is being made, and begin nothing but what is asked for; count what is made.

        Until `go_on`, which the next `take` heeds.
        """
        self._resting = True
        wait(self._pending)
        return len(self._pending)

    def go_on(self) -> None:
        """Let the thread work ahead again, after `rest`."""
        self._resting = False

    def reset(self, step: int) -> None:
        """Drop what was made, wait for what is being made, and go on at `step`."""
        for future in self._pending:
            future.cancel()
        self.close()
        self._pending.clear()
        self._first = step

    def close(self) -> None:
        """Stop the thread; what was made ahead is dropped."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
