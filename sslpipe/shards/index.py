"""The index of one tar shard, `X.tar.idx`: its samples, and where every member of them lies.

    64 bytes        magic, version, extensions, samples, bytes of the extension table, members, tar
    40 bytes x      samples (SAMPLE), in the order of the tar
    20 bytes x      members (MEMBER), those of one sample together, in the order of the tar
    ...             extension table: UTF-8, separated by newlines

Keys are not stored: the tar header before a payload holds them (`tar_headers.member_key`).
shards/README.md specifies it byte by byte.
"""

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import ShardError
from ..process import regular_file
from .codec import EXTENTS, Extent
from .side_files import other_format, replace_file
from .tar_headers import BLOCK

SAMPLE = np.dtype(
    [
        ("uid", "<i8"),  # rng.sample_id(key)
        ("extent", "<u4", EXTENTS),  # the codec's; all 0: not known
        ("label", "<i4"),  # -1: none
        ("flags", "<u4"),  # the codec's bits
        ("first", "<u4"),  # place of its first member in the table of members
        ("members", "<u2"),  # how many
        ("primary", "<u2"),  # which of them is the payload, counted from `first`
    ]
)
MEMBER = np.dtype(
    [
        ("offset", "<u8"),  # of its bytes in the tar
        ("size", "<u4"),  # bytes
        ("crc", "<u4"),  # CRC-32 of them
        ("ext", "<u2"),  # place in the extension table
        ("blocks", "<u2"),  # of 512 bytes before `offset`: its tar header, long names included
    ]
)
# the dtypes again: one record of a NumPy array costs 7 times as much
SAMPLE_STRUCT, MEMBER_STRUCT = struct.Struct("<q4IiIIHH"), struct.Struct("<QIIHH")
HEADER = struct.Struct("<8sHHIIIQ32s")
MAGIC, VERSION = b"sslpidx\0", 2
MAX_BYTES = 2**32 - 1  # of a member
MAX_BLOCKS = MAX_EXTENSIONS = 2**16 - 1


class SampleRecord(NamedTuple):
    """What the index says of one sample, as Python numbers; the fields are those of SAMPLE."""

    uid: int
    extent0: int
    extent1: int
    extent2: int
    extent3: int
    label: int
    flags: int
    first: int
    members: int
    primary: int

    @property
    def extent(self) -> tuple[int, int, int, int]:
        """The codec's numbers; all 0: not known."""
        return self.extent0, self.extent1, self.extent2, self.extent3


class MemberRecord(NamedTuple):
    """Where one member lies, as Python numbers; the fields are those of MEMBER."""

    offset: int
    size: int
    crc: int
    ext: int
    blocks: int

    @property
    def header(self) -> int:
        """Bytes of its tar header, which stands right before its bytes."""
        return BLOCK * self.blocks

    @property
    def start(self) -> int:
        """The byte at which its tar header begins."""
        return self.offset - BLOCK * self.blocks


@dataclass(frozen=True, slots=True, eq=False)
class Index:
    """Samples and members of one shard, and the tar that they belong to."""

    samples: npt.NDArray[np.void]  # (n,) of SAMPLE
    members: npt.NDArray[np.void]  # (m,) of MEMBER
    extensions: tuple[str, ...]
    tar_bytes: int
    tar_sha256: str  # hexadecimal

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def payloads(self) -> npt.NDArray[np.void]:
        """The member of every sample that is its payload: (n,) of MEMBER."""
        payloads: npt.NDArray[np.void] = self.members[
            self.samples["first"].astype(np.int64) + self.samples["primary"]
        ]
        return payloads

    def sample(self, row: int) -> SampleRecord:
        """Read the record of the sample in a row."""
        fields = SAMPLE_STRUCT.unpack_from(self.samples, row * SAMPLE_STRUCT.size)  # type: ignore[arg-type]
        return SampleRecord._make(fields)

    def member(self, number: int) -> MemberRecord:
        """The record of one member, by its place in the whole table."""
        fields = MEMBER_STRUCT.unpack_from(self.members, number * MEMBER_STRUCT.size)  # type: ignore[arg-type]
        return MemberRecord._make(fields)

    def payload(self, row: int) -> MemberRecord:
        """The record of a sample's payload."""
        sample = self.sample(row)
        return self.member(sample.first + sample.primary)

    def members_of(self, row: int) -> dict[str, MemberRecord]:
        """Read the members of the sample in a row, each under its extension."""
        sample = self.sample(row)
        found = (self.member(sample.first + number) for number in range(sample.members))
        return {self.extensions[member.ext]: member for member in found}


class IndexedMember(NamedTuple):
    """A member on its way into an index."""

    ext: str
    offset: int
    size: int
    crc: int
    blocks: int


@dataclass(slots=True)
class IndexBuilder:
    """Collects samples, in the order of the tar `where`, and makes an Index of them."""

    where: str = "tar"
    samples: list[tuple[int, Extent, int, int, int, int, int]] = field(default_factory=list)
    members: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    extensions: dict[str, int] = field(default_factory=dict)

    def add(
        self,
        uid: int,
        members: Iterable[IndexedMember],
        *,
        payload: str,
        extent: Extent,
        label: int,
        flags: int,
    ) -> None:
        """Add one sample; `payload` is the extension of the member that is it."""
        first, primary = len(self.members), 0
        for number, (ext, offset, size, crc, blocks) in enumerate(members):
            primary = number if ext == payload else primary
            code = self.extensions.setdefault(ext, len(self.extensions))
            self.members.append((offset, size, crc, code, blocks))
        counts = len(self.members) - first, primary
        self.samples.append((uid, filled(extent), label, flags, first, *counts))

    def finish(self, tar_bytes: int, tar_sha256: str) -> Index:
        """The index of a tar of so many bytes.

        Raises:
            ShardError: the tar has more kinds of members than an index can name.
        """
        if len(self.extensions) > MAX_EXTENSIONS:
            raise ShardError(
                f"{self.where}: {len(self.extensions):,} different extensions, an index names "
                f"{MAX_EXTENSIONS:,}; keys end at the first dot of a name: rename the members"
            )
        samples, members = np.array(self.samples, SAMPLE), np.array(self.members, MEMBER)
        return Index(samples, members, tuple(self.extensions), tar_bytes, tar_sha256)


def filled(extent: Extent) -> tuple[int, ...]:
    """An extent with a 0 for each number that its codec has no use for."""
    return (*extent, *[0] * (EXTENTS - len(extent)))


def index_path(tar: str | Path) -> Path:
    """The index that lies beside a tar."""
    tar = Path(tar)
    return tar.with_name(tar.name + ".idx")


def write_index(tar: str | Path, index: Index) -> None:
    """Write the index beside `tar`, atomically."""
    table = "\n".join(index.extensions).encode("utf-8", "surrogateescape")
    counts = len(index.extensions), len(index), len(table), len(index.members)
    digest = bytes.fromhex(index.tar_sha256)
    header = HEADER.pack(MAGIC, VERSION, *counts, index.tar_bytes, digest)
    body = index.samples.tobytes() + index.members.tobytes() + table
    replace_file(index_path(tar), header + body)


def read_index(tar: str | Path) -> Index:
    """Read the index that lies beside `tar`.

    Raises:
        ShardError: it is missing, no index, of another version, or cut.
    """
    path = index_path(tar)
    try:
        data = regular_file(path).read_bytes()
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror}); pack again") from error
    return parse_index(data, str(path))


def parse_index(data: bytes, where: str) -> Index:
    """The bytes of an index as an Index; its tables are read-only views of them.

    Raises:
        ShardError: no index, another version, another length than its header says, or a sample
            of members that are not there.
    """
    if len(data) < HEADER.size or not data.startswith(MAGIC):
        raise ShardError(f"{where}: is no shard index; pack again or copy it again")
    _, version, kinds, n, table, m, tar_bytes, digest = HEADER.unpack_from(data)
    if version != VERSION:
        raise ShardError(f"{where}: index {other_version(version, VERSION, folder_of(where))}")
    ends = np.cumsum([HEADER.size, n * SAMPLE.itemsize, m * MEMBER.itemsize, table]).tolist()
    if len(data) != ends[-1]:
        raise ShardError(
            f"{where}: was cut or changed: {len(data):,} of {ends[-1]:,} bytes; "
            "pack again or copy it again"
        )
    samples = np.frombuffer(data, SAMPLE, count=n, offset=ends[0])
    members = np.frombuffer(data, MEMBER, count=m, offset=ends[1])
    names = data[ends[2] :].decode("utf-8", "surrogateescape")  # of any encoding
    extensions = tuple(names.split("\n")) if kinds else ()
    index = Index(samples, members, extensions, tar_bytes, digest.hex())
    if len(extensions) != kinds or not is_consistent(index):
        raise ShardError(f"{where}: names members that it does not have; copy or pack it again")
    return index


def is_consistent(index: Index) -> bool:
    """Whether every sample has members that are there, and every member a known extension.

    And a header and bytes inside the tar: what reads them need not look.
    """
    samples, members = index.samples, index.members
    ends = samples["first"].astype(np.int64) + samples["members"]
    inside = ends.max(initial=0) <= len(members) and (samples["primary"] < samples["members"]).all()
    end = np.uint64(index.tar_bytes)
    offsets, sizes = members["offset"], members["size"].astype(np.uint64)
    begun = (offsets <= end) & (offsets >= members["blocks"].astype(np.uint64) * np.uint64(BLOCK))
    ended = sizes <= end - np.minimum(offsets, end)  # never a sum: it may run over
    named = members["ext"] < len(index.extensions)
    return bool(inside and (begun & ended & named).all())


def said_of_tar(index: Index) -> tuple[str, int, int]:
    """SHA-256, bytes and samples of the tar that an index is of: what a manifest says too."""
    return index.tar_sha256, index.tar_bytes, len(index)


def folder_of(where: str) -> str:
    """The folder of a file, or the URL of it."""
    return where.rpartition("/")[0] or "."


def other_version(found: object, known: int, folder: object) -> str:
    """What to say, and to do, about a set in `folder` of another version of the format."""
    older = found == 1
    what = f"run `sslpipe index {folder}` (the tars stay as they are)" if older else "pack again"
    return other_format(found, known, what, kind="version")


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
