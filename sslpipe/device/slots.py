"""The arena: slots of anonymous shared memory, one for each batch in flight, mapped by all workers.

A slot is a range of one file without a name, so nothing is left behind however a process ends, and
a worker that inherits the file can map any slot that is made later. Who takes a slot gets an array;
the slot is given out again when the last array or tensor that looks into it is gone: when a batch
was copied to the device, or when the last executor has read it in place.
"""

import errno
import mmap
import os
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import SslpipeError

U8 = npt.NDArray[np.uint8]
PAGE = 1 << 21  # bytes; of a huge page: slots are made of whole ones
SLACK = 2.0  # a slot serves what needs at least this part of it, as 1 / SLACK


@dataclass(slots=True, eq=False)
class Range:
    """Where a slot lies in the file, and this process's mapping of it."""

    start: int
    size: int
    memory: mmap.mmap


@dataclass(frozen=True, slots=True)
class Slot:
    """A slot in use: `memory` (size,) uint8 is the lease, `start` its place in the file."""

    start: int
    memory: U8


def anonymous_file() -> int:
    """A file that lives in memory and has no name."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("sslpipe", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:  # macOS: a file on disk that is unlinked already
        return os.dup(file.fileno())


def mapped(file: int, start: int, size: int) -> mmap.mmap:
    """Make the file longer by `size` bytes from `start` on, and map them.

    Raises:
        SslpipeError: the system gives no more, by one of its limits or for lack of memory.
    """
    try:
        os.ftruncate(file, start + size)
        return mmap.mmap(file, size, offset=start)
    except OSError as error:
        limit = "ulimit -f" if error.errno == errno.EFBIG else "ulimit -v"
        raise SslpipeError(
            f"shared memory: {size / 1e6:,.0f} MB for a batch: {error.strerror}; raise the limit "
            f"({limit}), free some memory, or make stream.batch_size smaller"
        ) from None


class Slots:
    """`take(size)` gives a slot of at least `size` bytes; safe in threads.

    What is kept, used or free, is about what was once in use at the same time.

    pin, unpin: called with the address and size of every mapping, for devices that copy from host
    memory by themselves.
    """

    def __init__(
        self,
        *,
        pin: Callable[[int, int], None] | None = None,
        unpin: Callable[[int], None] | None = None,
    ) -> None:
        self.file = anonymous_file()
        self._pin, self._unpin = pin, unpin
        self._lock = threading.Lock()
        self._returned: deque[Range] = deque()
        self._free: list[Range] = []
        self._end = 0  # of the file
        if unpin:  # who drops this without `close` unmaps what is free; see there
            free = self._free, self._returned
            weakref.finalize(self, unpin_all, unpin, *free).atexit = False
        self.bytes = 0  # that the slots take, used or free

    def take(self, size: int) -> Slot:
        """A slot; what stands in it is arbitrary.

        Raises:
            SslpipeError: the system gives no more memory.
        """
        size = max(size, 1)
        with self._lock:
            found = self._fitting(size) or self._grown(size)
        # its base is no array, so the views that are made of it keep it, and not the mapping
        lease = np.frombuffer(found.memory, np.uint8)
        weakref.finalize(lease, self._back, found).atexit = False
        return Slot(found.start, lease)

    def _back(self, found: Range) -> None:
        """Take back a range whose lease is gone; after `close` nobody else lets go of it.

        By the garbage collector perhaps, in the middle of `take`: so it may not wait for a lock.
        """
        self._returned.append(found)
        if self.file < 0:
            self._let_go_of_returned()

    def _let_go_of_returned(self) -> None:
        with suppress(IndexError):  # until there are none; another thread may be at it, too
            while True:
                self._let_go(self._returned.popleft())

    def _fitting(self, size: int) -> Range | None:
        """A free range that is large enough, and not far too large."""
        while self._returned:
            self._free.append(self._returned.popleft())
        fits = [r for r in self._free if size <= r.size <= max(PAGE, SLACK * size)]
        if not fits:
            return None
        best = min(fits, key=lambda r: r.size)
        self._free.remove(best)
        return best

    def _grown(self, size: int) -> Range:
        """A new range at the end of the file, in place of a free one that is of no use."""
        if self._free:
            self._let_go(self._free.pop(0))
        size = -(-size // PAGE) * PAGE
        memory = mapped(self.file, self._end, size)
        made = Range(self._end, size, memory)
        self._end += size
        self.bytes += size
        if self._pin:
            self._pin(address_of(memory), size)
        return made

    def _let_go(self, unused: Range) -> None:
        """Give the pages of a range back to the system; its place in the file stays empty."""
        if self._unpin:
            self._unpin(address_of(unused.memory))
        if hasattr(mmap, "MADV_REMOVE"):
            unused.memory.madvise(mmap.MADV_REMOVE)
        self.bytes -= unused.size

    def close(self) -> None:
        """Let go of the file and of all free slots; those in use live as long as their arrays.

        Those are unpinned, too, once they are gone: the next mapping may lie at the same address,
        which a device refuses to pin twice.
        """
        with self._lock:
            file, self.file = self.file, -1  # from here on what comes back is let go at once
            if file >= 0:
                os.close(file)
            self._returned.extend(self._free)
            self._free.clear()
            self._let_go_of_returned()


def unpin_all(unpin: Callable[[int], None], *groups: Iterable[Range]) -> None:
    """Unpin ranges that nobody gives out any more."""
    for group in groups:
        for unused in group:
            unpin(address_of(unused.memory))


def address_of(memory: mmap.mmap) -> int:
    """Where a mapping begins in this process."""
    array: npt.NDArray[Any] = np.frombuffer(memory, np.uint8)
    return int(array.ctypes.data)
