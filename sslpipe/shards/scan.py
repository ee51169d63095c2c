"""Build the index of a tar, ours or anyone's: GNU long names, PAX, members in any order."""

import tarfile
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..errors import SampleError, ShardError
from ..rng import sample_id
from .index import BLOCK, EXTRA_BLOCKS, GPU_JPEG, RECORD, Index, file_sha256, split_name

Inspect = Callable[[bytes], tuple[int, int]]  # payload -> width, height; SampleError
Report = Callable[[str, str], None]  # key, reason
Row = tuple[int, int, int, int, int, int, int, int, int]  # one RECORD

LABEL = "cls"
MAX_PAYLOAD = 2**32 - 1  # bytes: u4 in RECORD
MAX_EXTRA_BLOCKS = 255  # high byte of the flags


@dataclass(frozen=True, slots=True)
class Sample:
    """The members of one sample that the index needs."""

    key: str
    ext: str
    payload: tarfile.TarInfo
    label: tarfile.TarInfo | None


def index_tar(
    path: str | Path,
    *,
    extensions: Collection[str],
    inspect: Inspect | None = None,
    report: Report | None = None,
) -> Index:
    """Index a plain tar by webdataset's rules: key = name up to the first dot of its last part.

    The payload of a sample is its first member whose last extension is one of `extensions` (lower
    case, no dot). Samples without payload, with a repeated member, or that `inspect` refuses are
    told to `report(key, reason)`; without `inspect` width and height are 0.

    Raises:
        ShardError: no plain tar, or a cut or damaged one.
    """
    path = Path(path)
    told = report or (lambda key, reason: None)
    with path.open("rb") as file:
        samples = find_samples(read_members(file, path), extensions, told)
        table: dict[str, int] = {}
        rows = []
        for sample in samples:
            try:
                rows.append(make_row(file, sample, inspect, table))
            except SampleError as error:
                told(sample.key, str(error))
    return Index(np.array(rows, RECORD), tuple(table), path.stat().st_size, file_sha256(path))


def read_members(file: BinaryIO, path: Path) -> list[tarfile.TarInfo]:
    """Every member of a tar that is whole up to its end mark."""
    try:
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar:
            members = tar.getmembers()
            end = tar.offset
    except tarfile.TarError as error:
        raise ShardError(
            f"{path}: no plain tar, or a cut one ({error}); unpack it if compressed, or copy again"
        ) from error
    file.seek(end)
    mark = file.read(BLOCK)
    # tarfile takes a damaged header or a cut between two members for the end, without an error
    if len(mark) < BLOCK or mark.strip(b"\0"):
        raise ShardError(f"{path}: cut or damaged at byte {end:,}; copy or pack it again")
    return members


def find_samples(
    members: list[tarfile.TarInfo], extensions: Collection[str], report: Report
) -> Iterator[Sample]:
    """Group members by key, in the order of the tar."""
    groups: dict[str, dict[str, tarfile.TarInfo]] = {}
    for member in members:
        name = split_name(member.name)
        if name is None or not member.isreg() or member.issparse() or is_meta(member.name):
            continue
        key, ext = name[0], name[1].lower()
        if ext in groups.setdefault(key, {}):
            report(key, f"a second member {ext!r} of this key; only the first is used")
            continue
        groups[key][ext] = member
    for key, parts in groups.items():
        payload = next((e for e in parts if e.rpartition(".")[2] in extensions), None)
        if payload is None:
            report(key, f"no payload among its members {', '.join(sorted(parts))}")
            continue
        yield Sample(key, payload, parts[payload], parts.get(LABEL))


def is_meta(name: str) -> bool:
    """`__name__` at the root of a tar is not a sample for webdataset."""
    root = name.partition("/")[0]
    return root.startswith("__") and root.endswith("__")


def make_row(file: BinaryIO, sample: Sample, inspect: Inspect | None, table: dict[str, int]) -> Row:
    """One record; adds the extension to `table`.

    Raises:
        SampleError: from `inspect`, or what a record cannot hold.
    """
    member = sample.payload
    extra = (member.offset_data - member.offset) // BLOCK - 1
    if member.size > MAX_PAYLOAD or extra > MAX_EXTRA_BLOCKS:
        raise SampleError(f"payload of {member.size:,} bytes or its name is too long for the index")
    data = read_member(file, member)
    width, height = inspect(data) if inspect else (0, 0)
    flags = extra << EXTRA_BLOCKS | (GPU_JPEG if is_gpu_jpeg(data) else 0)
    label = read_label(file, sample.label)
    ext = table.setdefault(sample.ext, len(table))
    uid, crc = sample_id(sample.key), zlib.crc32(data)
    return member.offset_data, uid, member.size, crc, label, width, height, ext, flags


def read_member(file: BinaryIO, member: tarfile.TarInfo) -> bytes:
    file.seek(member.offset_data)
    return file.read(member.size)


def read_label(file: BinaryIO, member: tarfile.TarInfo | None) -> int:
    """The decimal class id in a `.cls` member; -1 where there is none."""
    if member is None:
        return -1
    try:
        label = int(read_member(file, member))
    except ValueError:
        return -1
    return label if 0 <= label < 2**31 else -1


def is_gpu_jpeg(data: bytes) -> bool:
    """Whether the first frame header (SOFn) of a JPEG says baseline and three components."""
    at = 2 if data.startswith(b"\xff\xd8") else len(data)
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # DHT, JPG, DAC
            return marker == 0xC0 and data[at + 9] == 3
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False
