"""Checked bytes of any sample of a packed data set; safe to call from many threads at once.

Every read is compared with the index: bounds, tar header, CRC32. What webdataset passes over
without a word (a cut tar, a flipped bit) is an error here that names shard, sample and member.
Where the shards lie is the store's affair (`sslpipe.shards.read.store`).
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from zlib_ng.zlib_ng import crc32

from .. import rng
from ..errors import SampleError
from ..shards.index import MemberRecord, SampleRecord
from ..shards.read.store import OpenTar, ShardStore
from ..shards.tar_headers import member_key

Extent = tuple[int, int, int, int]
UNKNOWN: Extent = (0, 0, 0, 0)


class Sample(NamedTuple):  # made once per sample read: a dataclass takes three times as long
    """One sample as packed. `label` is -1 where there is none."""

    uid: int
    key: str
    label: int
    data: bytes  # of the payload
    flags: int = 0  # of the index: the codec's bits
    extent: Extent = UNKNOWN  # of the index: the codec's numbers; all 0: not known
    members: Mapping[str, bytes] = {}  # all that was read, by extension; the payload too

    @property
    def sides(self) -> tuple[int, int]:
        """The first two numbers of the extent: height and width of a picture; 0, 0: not known."""
        return self.extent[:2]


class Reader:
    """`read(shard, row)` over the shards of a store.

    `members`: extensions that are read beside the payload (`txt`, `json` ...); a sample that has
    no such member comes without it.
    """

    def __init__(self, store: ShardStore, members: Collection[str] = ()) -> None:
        self._store, self._wanted = store, frozenset(members)

    def read(self, shard: int, row: int) -> Sample:
        """Read and check one sample.

        Raises:
            SampleError: cut, damaged, or not what the index says.
            ShardError: the shard or its index cannot be opened.
        """
        opened = self._store.open(shard)
        index = opened.index
        sample = index.sample(row)
        payload = index.member(sample.first + sample.primary)
        header, data = opened.read(payload.start, payload.header, payload.size)
        ext = index.extensions[payload.ext]
        if len(data) != payload.size:
            raise self._cut(data, payload, ext, self._where(shard, row))
        key = self._checked_key(header, sample.uid, shard, row)
        if crc32(data) != payload.crc:
            raise self._damaged(ext, self._where(shard, row, key))
        members = {ext: data}
        if self._wanted:
            members |= self._others(opened, sample, self._where(shard, row, key))
        return Sample(sample.uid, key, sample.label, data, sample.flags, sample.extent, members)

    def name(self, shard: int) -> str:
        """The file of a shard, for messages."""
        return self._store.name(shard)

    def _others(self, opened: OpenTar, sample: SampleRecord, where: str) -> dict[str, bytes]:
        """The members that are wanted beside the payload, checked as it is."""
        index, found = opened.index, {}
        for number in range(sample.members):
            member = index.member(sample.first + number)
            ext = index.extensions[member.ext]
            if ext not in self._wanted or number == sample.primary:
                continue
            _, data = opened.read(member.start, member.header, member.size)
            if len(data) != member.size:
                raise self._cut(data, member, ext, where)
            if crc32(data) != member.crc:
                raise self._damaged(ext, where)
            found[ext] = data
        return found

    def _where(self, shard: int, row: int, key: str = "") -> str:
        """A sample as errors name it; the key only once it is known."""
        return f"{self.name(shard)} sample {row}" + (f" ({key})" if key else "")

    @staticmethod
    def _cut(data: bytes, member: MemberRecord, ext: str, where: str) -> SampleError:
        return SampleError(
            f"{where}: the shard ends after {len(data):,} of {member.size:,} bytes of its .{ext}; "
            "it was cut: copy or pack it again"
        )

    @staticmethod
    def _damaged(ext: str, where: str) -> SampleError:
        return SampleError(
            f"{where}: its .{ext} does not have the CRC32 of the index; the shard is damaged: run "
            "`sslpipe verify`, then copy or pack it again"
        )

    def _checked_key(self, header: bytes, uid: int, shard: int, row: int) -> str:
        """The key in a tar header, which must be the one that was indexed."""
        try:
            key = member_key(header)
        except SampleError as error:
            raise SampleError(f"{self._where(shard, row)}: {error}") from error
        if rng.sample_id(key) != uid:
            raise SampleError(
                f"{self._where(shard, row)}: damaged tar header (it names {key!r}, not the sample "
                "that was indexed); copy or pack the shard again"
            )
        return key
