"""Checked bytes of any sample of a packed data set; safe in threads, light enough for workers.

Every read is compared with the index: bounds, tar header, CRC32. What webdataset passes over
without a word (a cut tar, a flipped bit) is an error here that names shard, sample and member.
Where the shards lie is the store's affair (`sslpipe.shards.read.store`).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from zlib_ng.zlib_ng import crc32

from .. import rng
from ..errors import SampleError
from ..shards.tar_headers import member_key

Extent = tuple[int, int, int, int]
UNKNOWN: Extent = (0, 0, 0, 0)


class TarPlace(NamedTuple):
    """Which tar of which set: files that were made of it later lie beside it."""

    path: str  # of the tar beside the manifest, where its index lies too; a URL or a path
    sha256: str


class Sample(NamedTuple):  # made once per sample read: a dataclass takes three times as long
    """One sample as packed. `label` is -1 where there is none."""

    uid: int
    key: str
    label: int
    data: bytes  # of the payload
    flags: int = 0  # of the index: the codec's bits
    extent: Extent = UNKNOWN  # of the index: the codec's numbers; all 0: not known
    members: Mapping[str, bytes] = {}  # all that was read, by extension; the payload too
    tar: TarPlace | None = None  # None: it is of an iterable
    row: int = -1  # in the tar

    @property
    def sides(self) -> tuple[int, int]:
        """The first two numbers of the extent: height and width of a picture; 0, 0: not known."""
        return self.extent[:2]


MEMORY = TarPlace("", "")  # of an iterable's samples, which the main process has put in a file


class OpenTar(Protocol):
    """A tar that can be read for as long as somebody refers to it."""

    def read(self, start: int, header: int, content: int) -> tuple[bytes, bytes]:
        """Two blocks that lie one after the other; shorter where the tar ends."""
        ...


class MemberPlace(NamedTuple):
    """Where a member lies in its tar, its tar header first; and what its bytes must be."""

    ext: str
    start: int
    header: int
    size: int
    crc: int


class Wanted(NamedTuple):
    """A sample as the index knows it, and its payload's place: as `MemberPlace` has it."""

    file: str
    row: int
    uid: int
    label: int
    flags: int
    extent: Extent
    ext: str
    start: int
    header: int
    size: int
    crc: int
    others: Sequence[MemberPlace] = ()  # that are read beside the payload
    tar: TarPlace | None = None


def read_sample(tar: OpenTar, wanted: Wanted) -> Sample:
    """Read and check one sample.

    Raises:
        SampleError: cut, damaged, or not what the index says.
        ShardError: the tar lies elsewhere and cannot be reached.
    """
    header, data = tar.read(wanted.start, wanted.header, wanted.size)
    if len(data) != wanted.size:
        raise cut(data, wanted, where(wanted))
    try:
        key = key_in(header, wanted.uid)
    except SampleError as error:
        raise SampleError(f"{where(wanted)}: {error}") from error
    if crc32(data) != wanted.crc:
        raise damaged(wanted, f"{where(wanted)} ({key})")
    members = {wanted.ext: data}
    for member in wanted.others:
        _, other = tar.read(member.start, member.header, member.size)
        if len(other) != member.size:
            raise cut(other, member, f"{where(wanted)} ({key})")
        if crc32(other) != member.crc:
            raise damaged(member, f"{where(wanted)} ({key})")
        members[member.ext] = other
    return Sample(
        wanted.uid, key, wanted.label, data, wanted.flags, wanted.extent, members, wanted.tar,
        wanted.row,
    )  # fmt: skip


def kept_sample(memory: OpenTar, wanted: Wanted) -> Sample:
    """A sample of an iterable, its key before its bytes (parcels.py); nothing can have cut it."""
    key, data = memory.read(wanted.start, wanted.header, wanted.size)
    members = {wanted.ext: data}
    for member in wanted.others:
        _, members[member.ext] = memory.read(member.start, member.header, member.size)
    return Sample(
        wanted.uid, key.rstrip(b"\0").decode(), wanted.label, data, wanted.flags, wanted.extent,
        members,
    )  # fmt: skip


def where(wanted: Wanted) -> str:
    """Which sample is meant, for messages."""
    return f"{wanted.file} sample {wanted.row}"


def cut(data: bytes, member: MemberPlace | Wanted, where: str) -> SampleError:
    """The error of a member whose tar ends too early."""
    return SampleError(
        f"{where}: the shard ends after {len(data):,} of {member.size:,} bytes of its "
        f".{member.ext}; it was cut: copy or pack it again"
    )


def damaged(member: MemberPlace | Wanted, where: str) -> SampleError:
    """The error of a member whose CRC32 is another."""
    return SampleError(
        f"{where}: its .{member.ext} does not have the CRC32 of the index; the shard is "
        "damaged: run `sslpipe verify`, then copy or pack it again"
    )


def key_in(header: bytes, uid: int) -> str:
    """The key in a tar header, which must be that of the sample with this id.

    Raises:
        SampleError: the header is damaged, or names another sample; it does not say where.
    """
    key = member_key(header)
    if rng.sample_id(key) != uid:
        raise SampleError(
            f"damaged tar header (it names {key!r}, not the sample that was indexed); copy or pack "
            "the shard again"
        )
    return key
