"""The index of one tar shard, `X.tar.idx`: where every payload lies, its checksum and its label.

    56 bytes    magic, version, bytes of the extension table, records, tar_bytes, tar_sha256
    ...         extension table: UTF-8, separated by newlines
    36 bytes x  records (RECORD), in the order of the tar

Keys are not stored: the tar header before a payload holds them (`header_range`, `parse_header`).
"""

import hashlib
import io
import re
import struct
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import SampleError, ShardError

RECORD = np.dtype(
    [
        ("offset", "<u8"),  # of the payload in the tar
        ("uid", "<i8"),  # rng.sample_id(key)
        ("size", "<u4"),  # bytes of the payload
        ("crc", "<u4"),  # CRC-32 of the payload
        ("label", "<i4"),  # -1: none
        ("width", "<u2"),  # pixels as decoded; 0: not decoded when indexed
        ("height", "<u2"),
        ("ext", "<u2"),  # place in the extension table
        ("flags", "<u2"),  # GPU_JPEG | header blocks before the last one << 8
    ]
)
ROW = struct.Struct("<QqIIiHHHH")  # RECORD again: one record of a NumPy array costs 7 times as much
GPU_JPEG = 1  # GPU decoders take it: baseline JPEG of three components
PLAIN, MAGIC_AT = b"ustar\x0000", 257  # a POSIX header without extensions of its own
EXTRA_BLOCKS = 8  # shift: PAX and GNU long names stand in extra blocks before the header
BLOCK = tarfile.BLOCKSIZE

HEADER = struct.Struct("<8sHHIQ32s")
MAGIC, VERSION = b"sslpidx\0", 1

# the key ends at the first dot of the base name, as in webdataset
NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)


class Row(NamedTuple):
    """One record as Python numbers; the fields are those of RECORD."""

    offset: int
    uid: int
    size: int
    crc: int
    label: int
    width: int
    height: int
    ext: int
    flags: int

    @property
    def header(self) -> int:
        """Bytes of the tar header (long names included) before the payload."""
        return BLOCK * (1 + (self.flags >> EXTRA_BLOCKS))


@dataclass(frozen=True, slots=True, eq=False)
class Index:
    """Records of one shard, the payload extensions they point at, and the tar they belong to."""

    records: npt.NDArray[np.void]  # (n,) of RECORD
    extensions: tuple[str, ...]
    tar_bytes: int
    tar_sha256: str  # hexadecimal

    def __len__(self) -> int:
        return len(self.records)

    def record(self, row: int) -> Row:
        """One record."""
        return Row._make(ROW.unpack_from(self.records, row * ROW.size))  # type: ignore[arg-type]


def index_path(tar: str | Path) -> Path:
    """The index that lies beside a tar."""
    tar = Path(tar)
    return tar.with_name(tar.name + ".idx")


def write_index(tar: str | Path, index: Index) -> None:
    """Write the index beside `tar`, atomically."""
    table = "\n".join(index.extensions).encode()
    digest = bytes.fromhex(index.tar_sha256)
    header = HEADER.pack(MAGIC, VERSION, len(table), len(index), index.tar_bytes, digest)
    replace_file(index_path(tar), header + table + index.records.tobytes())


def replace_file(path: Path, content: bytes) -> None:
    """Write through `*.part`, so that a file of this name is always whole."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.replace(path)


def read_index(tar: str | Path) -> Index:
    """Read the index that lies beside `tar`.

    Raises:
        ShardError: it is missing, no index, of another version, or cut.
    """
    path = index_path(tar)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror}); pack again") from error
    return parse_index(data, str(path))


def parse_index(data: bytes, where: str) -> Index:
    """The bytes of an index as an Index; the records are a read-only view of them.

    Raises:
        ShardError: no index, another version, or another length than its header says.
    """
    if len(data) < HEADER.size or not data.startswith(MAGIC):
        raise ShardError(f"{where}: is no shard index; pack again or copy it again")
    _, version, table, count, tar_bytes, digest = HEADER.unpack_from(data)
    if version != VERSION:
        raise ShardError(
            f"{where}: index version {version}, this sslpipe reads {VERSION}; "
            "pack again or install the sslpipe that wrote it"
        )
    start = HEADER.size + table
    expected = start + count * RECORD.itemsize
    if len(data) != expected:
        raise ShardError(
            f"{where}: was cut or changed: {len(data):,} of {expected:,} bytes; "
            "pack again or copy it again"
        )
    names = data[HEADER.size : start].decode("utf-8", "replace")
    records = np.frombuffer(data, RECORD, count=count, offset=start)
    extensions = tuple(names.split("\n")) if names else ()
    return Index(records, extensions, tar_bytes, digest.hex())


def header_range(record: Any) -> tuple[int, int]:
    """Offset and length in bytes of the tar header (long names included) of a record's payload."""
    length = BLOCK * (1 + (int(record["flags"]) >> EXTRA_BLOCKS))
    return int(record["offset"]) - length, length


def parse_header(header: bytes) -> tarfile.TarInfo:
    """The member that a tar header describes.

    Raises:
        SampleError: the header is damaged.
    """
    try:
        if len(header) == BLOCK:
            return tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        with tarfile.open(fileobj=io.BytesIO(header), mode="r:", encoding="utf-8") as tar:
            member = tar.next()  # the first; a second would look beyond the header
    except tarfile.TarError as error:
        raise SampleError(f"damaged tar header ({error})") from error
    if member is None:
        raise SampleError("damaged tar header (it is the end mark of the tar)")
    return member


def member_key(header: bytes) -> str:
    """The sample key in the tar header before a payload.

    Raises:
        SampleError: the header is damaged.
    """
    if len(header) == BLOCK and header.startswith(PLAIN, MAGIC_AT):
        # tarfile's parser takes longer than reading the sample; nothing but the name is needed
        name, prefix = header[:100].rstrip(b"\0"), header[345:500].rstrip(b"\0")
        full = (prefix + b"/" + name if prefix else name).decode("utf-8", "surrogateescape")
    else:
        full = parse_header(header).name
    parts = split_name(full)
    if parts is None:
        raise SampleError(f"damaged tar header (the name {full!r} has no key)")
    return parts[0]


def split_name(name: str) -> tuple[str, str] | None:
    """Key and extension of a member (`a/b.left.jpg` -> `a/b`, `left.jpg`); None without either."""
    match = NAME.fullmatch(name)
    if match is None:
        return None
    # names in other encodings arrive as lone surrogates, which no file or hash takes
    key = match[1].encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return key, match[2]


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
