"""Checked bytes of any sample of a packed data set; safe to call from many threads at once.

Every read is compared with the index: bounds, tar header, CRC32. What webdataset passes over
without a word (a cut tar, a flipped bit) is an error here that names shard and sample.
Where the shards lie is the store's affair (`sslpipe.shards.read.store`).
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from zlib_ng.zlib_ng import crc32

from .. import rng
from ..errors import SampleError


class Record(Protocol):
    """What the reader needs of a sample's record in the index."""

    @property
    def offset(self) -> int: ...  # of the payload, bytes
    @property
    def size(self) -> int: ...  # of the payload, bytes
    @property
    def header(self) -> int: ...  # bytes of the tar header before it
    @property
    def crc(self) -> int: ...
    @property
    def uid(self) -> int: ...
    @property
    def label(self) -> int: ...
    @property
    def flags(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...


class Opened(Protocol):
    """One shard that can be read; it stays readable for as long as somebody refers to it."""

    def record(self, row: int) -> Record:
        """The record of one sample."""
        ...

    def read(self, start: int, header: int, payload: int) -> tuple[bytes, bytes]:
        """Two blocks that lie one after the other; shorter where the shard ends."""
        ...


class Store(Protocol):
    """The shards of a manifest, by number; all calls are safe from many threads."""

    def open(self, shard: int) -> Opened:
        """The shard, fetched if need be; ShardError."""
        ...

    def name(self, shard: int) -> str:
        """The file of a shard, for messages."""
        ...

    def want(self, shards: Sequence[int]) -> None:
        """Say which shards are needed next, in this order; others may be given up."""
        ...

    def close(self) -> None:
        """Stop what runs in the background, and close the files."""
        ...


class Format(Protocol):
    """The shard format; `sslpipe.shards.index` is one."""

    def member_key(self, header: bytes) -> str:
        """The sample key in a tar header; SampleError."""
        ...


class Sample(NamedTuple):  # made once per sample read: a dataclass takes three times as long
    """One sample as packed. `label` is -1 where there is none."""

    uid: int
    key: str
    label: int
    data: bytes
    flags: int = 0  # of the index
    sides: tuple[int, int] = (0, 0)  # height, width by the index; 0, 0: not known


class Reader:
    """`read(shard, row)` over the shards of a store."""

    def __init__(self, store: Store, form: Format) -> None:
        self._store, self._form = store, form

    def read(self, shard: int, row: int) -> Sample:
        """Read and check one sample.

        Raises:
            SampleError: cut, damaged, or not what the index says.
            ShardError: the shard or its index cannot be opened.
        """
        opened = self._store.open(shard)
        record = opened.record(row)
        header, data = opened.read(record.offset - record.header, record.header, record.size)
        if len(data) != record.size:
            raise SampleError(
                f"{self.name(shard)} sample {row}: the shard ends after {len(data):,} of "
                f"{record.size:,} bytes; it was cut: copy or pack it again"
            )
        key = self._checked_key(header, record, shard, row)
        if crc32(data) != record.crc:
            raise SampleError(
                f"{self.name(shard)} sample {row} ({key}): the bytes do not have the CRC32 of the "
                "index; the shard is damaged: run `sslpipe verify`, then copy or pack it again"
            )
        sides = record.height, record.width
        return Sample(record.uid, key, record.label, data, record.flags, sides)

    def name(self, shard: int) -> str:
        """The file of a shard, for messages."""
        return self._store.name(shard)

    def _checked_key(self, header: bytes, record: Record, shard: int, row: int) -> str:
        """The key in a tar header, which must be the one that was indexed."""
        try:
            key = self._form.member_key(header)
        except SampleError as error:
            raise SampleError(f"{self.name(shard)} sample {row}: {error}") from error
        if rng.sample_id(key) != record.uid:
            raise SampleError(
                f"{self.name(shard)} sample {row}: damaged tar header (it names {key!r}, not the "
                "sample that was indexed); copy or pack the shard again"
            )
        return key
