"""Memory that is used again: fresh pages cost more than most of what is written into them."""

import math
import threading
import weakref
from collections import deque
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

SLACK = 1.5  # memory serves arrays down to this part of it


class Memory(Protocol):
    """Gives memory for arrays, as NumPy does: `Buffers`, or a place that is waiting for one."""

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """An array of that shape; what stands in it is arbitrary."""
        ...


class Buffers:
    """Offers `empty` as numpy does, on memory to which nothing refers any more; safe in threads.

    An array's memory comes back when the last array or tensor that looks into it is gone, whoever
    holds it: nothing is overwritten under anyone. What is kept, used or free, is never more than
    what was once in use at the same time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._returned: deque[memoryview] = deque()
        self._free: deque[memoryview] = deque()  # longest free first
        self._kept = self._used = self._most = 0  # bytes

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return an array of that shape; what stands in it is arbitrary."""
        size = max(1, math.prod(shape) * np.dtype(dtype).itemsize)
        with self._lock:
            memory = self._take(size)
        # its base is no array: numpy makes it, and not the memory itself, the base of its views
        lease = np.frombuffer(memory, np.uint8)
        # by the garbage collector perhaps, in the middle of `_take`: so it may not wait for a lock
        weakref.finalize(lease, self._returned.append, memory).atexit = False
        return lease[: math.prod(shape) * np.dtype(dtype).itemsize].view(dtype).reshape(shape)

    def _take(self, size: int) -> memoryview:
        """Take what fits and became free last, else new memory; let go of what is too much."""
        for _ in range(len(self._returned)):
            self._free.append(self._returned.popleft())
            self._used -= self._free[-1].nbytes
        places = reversed(range(len(self._free)))
        place = next((i for i in places if size <= self._free[i].nbytes <= SLACK * size), None)
        if place is None:
            memory = np.empty(size, np.uint8).data
            self._kept += memory.nbytes
        else:
            memory = self._free[place]
            del self._free[place]
        self._used += memory.nbytes
        self._most = max(self._most, self._used)
        while self._kept > self._most:
            self._kept -= self._free.popleft().nbytes
        return memory
