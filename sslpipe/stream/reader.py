"""Checked bytes of any sample of a packed data set; safe to call from many threads at once.

Every read is compared with the index: bounds, tar header, CRC32. What webdataset passes over
without a word (a cut tar, a flipped bit) is an error here that names shard and sample.
"""

import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import SampleError, ShardError

OPEN_FILES = 256
OPEN_INDEXES = 1024
T = TypeVar("T")


class Index(Protocol):
    """What the reader needs of a shard's index."""

    @property
    def records(self) -> npt.NDArray[np.void]:
        """One record per sample."""
        ...


class Format(Protocol):
    """The shard format; `sslpipe.shards.index` is one."""

    def read_index(self, tar: Path) -> Index:
        """The index that lies beside a shard; ShardError."""
        ...

    def header_range(self, record: Any) -> tuple[int, int]:
        """Offset and length in bytes of the tar header before a record's payload."""
        ...

    def member_key(self, header: bytes) -> str:
        """The sample key in a tar header; SampleError."""
        ...


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample as packed. `label` is -1 where there is none."""

    uid: int
    key: str
    label: int
    data: bytes
    flags: int = 0  # of the index
    sides: tuple[int, int] = (0, 0)  # height, width by the index; 0, 0: not known


class Recent(Generic[T]):
    """The last `size` results of `make`, by number; thread-safe."""

    def __init__(self, make: Callable[[int], T], size: int) -> None:
        self._make, self._size = make, size
        self._kept: OrderedDict[int, T] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, number: int) -> T:
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
        made = self._make(number)  # outside the lock: two threads may make the same, one is kept
        with self._lock:
            kept = self._kept.setdefault(number, made)
            if len(self._kept) > self._size:
                self._kept.popitem(last=False)
        return kept


class File:
    """An open shard; closed when the last reader lets go of it."""

    def __init__(self, path: Path) -> None:
        try:
            self.fd = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise ShardError(
                f"{path}: cannot be opened ({error.strerror}); was the shard moved or deleted?"
            ) from error

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


class Reader:
    """`read(shard, row)` over the shards of a manifest."""

    def __init__(self, paths: list[Path], form: Format) -> None:
        self.paths, self._form = paths, form
        self._files = Recent(lambda shard: File(paths[shard]), OPEN_FILES)
        self._indexes = Recent(lambda shard: form.read_index(paths[shard]), OPEN_INDEXES)

    def read(self, shard: int, row: int) -> Sample:
        """Read and check one sample.

        Raises:
            SampleError: cut, damaged, or not what the index says.
            ShardError: the shard or its index cannot be opened.
        """
        record = self._indexes(shard).records[row]
        fd = self._files(shard).fd
        start, length = self._form.header_range(record)
        size = int(record["size"])
        # two calls: cutting one block in two would copy the payload, which costs as much as a CRC
        header = os.pread(fd, length, start)
        data = os.pread(fd, size, start + length)
        where = f"{self.paths[shard].name} sample {row}"
        if len(data) != size:
            raise SampleError(
                f"{where}: the shard ends after {len(data):,} of {size:,} bytes; it was cut: "
                "copy or pack it again"
            )
        key = self._form.member_key(header)
        if zlib.crc32(data) != int(record["crc"]):
            raise SampleError(
                f"{where} ({key}): the bytes do not have the CRC32 of the index; the shard is "
                "damaged: run `sslpipe verify`, then copy or pack it again"
            )
        sides = int(record["height"]), int(record["width"])
        label, flags = int(record["label"]), int(record["flags"])
        return Sample(int(record["uid"]), key, label, data, flags, sides)
