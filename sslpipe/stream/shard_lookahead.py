"""Which shards the coming steps need: what the store fetches before the reader asks for it."""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..errors import ShardError

I64 = npt.NDArray[np.int64]
STEPS = 64  # looked at in one go, so that the first download need not wait for the last plan
MOST_STEPS = 4096  # ahead
AHEAD = 0.5  # of the room is for the steps ahead; the rest for what lies outside of any plan


class Fetching(Protocol):
    """What it needs of a store."""

    room: int
    fetched: I64

    def want(self, shards: Sequence[int]) -> None:
        """Fetch these in this order; give up all others."""
        ...


class ShardLookahead:
    """Tells a store what to fetch: the shards of the next steps, up to half of its room.

    No setting says how far ahead: the budget of the cache does.

    `shards_of(step)`: the shards of this rank's share, (n,) int64; called from one thread.
    `epoch`: steps after which the same shards come again.

    Raises:
        ShardError: the room does not hold what is needed at the same time.
    """

    def __init__(self, shards_of: Callable[[int], I64], store: Fetching, *, epoch: int) -> None:
        self._shards_of, self._store = shards_of, store
        self._steps: deque[list[int]] = deque()  # the shards of steps `_next - len` to `_next - 1`
        self._needs: Counter[int] = Counter()  # shard -> steps ahead that need it; in order of need
        self._bytes = 0  # of the shards in `_needs`
        self._next = 0  # the first step that was not looked at yet
        self._newest = 0
        self._job: Future[None] | None = None
        self._thread: ThreadPoolExecutor | None = None
        if store.fetched.any():
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="lookahead")
            check_room(self._shards_of, store, steps=min(STEPS, epoch))

    def at(self, step: int) -> None:
        """Say that the reader has come to `step`; returns at once."""
        if self._thread is None:
            return
        if self._job is not None and self._job.done():
            self._job.result()  # its error, if there was one
        self._newest = step
        self._job = self._thread.submit(self._look, step)

    def close(self) -> None:
        """Stop the thread; what the store fetches already goes on."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def _look(self, step: int) -> None:
        """Forget the steps that are done, look at as many new ones as there is room for."""
        if step != self._newest:  # the reader was faster
            return
        if not self._next - len(self._steps) <= step <= self._next:  # a resumed or rewound stream
            self._steps.clear()
            self._needs.clear()
            self._bytes, self._next = 0, step
        while self._next - len(self._steps) < step:
            self._forget(self._steps.popleft())
        for _ in range(min(STEPS, MOST_STEPS - len(self._steps))):
            if self._bytes >= AHEAD * self._store.room:
                break
            self._add(self._shards_of(self._next).tolist())
        self._store.want(within(self._needs, self._store))

    def _add(self, shards: list[int]) -> None:
        for shard in shards:
            if shard not in self._needs:
                self._bytes += int(self._store.fetched[shard])
            self._needs[shard] += 1
        self._steps.append(shards)
        self._next += 1

    def _forget(self, shards: list[int]) -> None:
        for shard in shards:
            self._needs[shard] -= 1
            if not self._needs[shard]:
                del self._needs[shard]
                self._bytes -= int(self._store.fetched[shard])


def within(shards: Counter[int], store: Fetching) -> list[int]:
    """The first of the shards, as far as the room for them goes."""
    order = np.fromiter(shards, dtype=np.int64, count=len(shards))
    count = int(np.searchsorted(np.cumsum(store.fetched[order]), AHEAD * store.room, side="right"))
    return list(shards)[:count]


def check_room(shards_of: Callable[[int], I64], store: Fetching, *, steps: int) -> None:
    """What the first steps need at the same time must fit, else every step would fetch it again.

    Raises:
        ShardError: with both numbers.
    """
    needs = [shards_of(step) for step in range(steps)]
    last = {int(shard): step for step, shards in enumerate(needs) for shard in shards}
    live: set[int] = set()
    for step, shards in enumerate(needs):
        live = {shard for shard in live if last[shard] >= step} | set(shards.tolist())
        needed = sum(int(store.fetched[shard]) for shard in live)
        if needed > store.room:
            raise ShardError(
                f"run.cache_gb: {len(live)} shards of {needed:,} bytes are needed at a time, the "
                f"share of this process is {store.room:,} bytes; raise run.cache_gb, lower "
                "stream.lanes or stream.window, or pack smaller shards"
            )
