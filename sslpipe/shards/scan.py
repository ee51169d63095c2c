"""Build the index of a tar, ours or anyone's: GNU long names, PAX, members in any order.

One pass from the first byte to the last, so that a distant tar is streamed once and never stored.
"""

import json
import re
import tarfile
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from ..errors import SampleError, ShardError
from ..rng import sample_id
from .index import BLOCK, EXTRA_BLOCKS, GPU_JPEG, RECORD, Index, split_name
from .tar_streams import CHUNK, Forward, Stream

Inspect = Callable[[bytes], tuple[int, int]]  # payload -> width, height; SampleError
Report = Callable[[str, str], None]  # key, reason
Row = tuple[int, int, int, int, int, int, int, int, int]  # one RECORD

LABEL = "cls"  # extension of a class id
META = re.compile(r"__[^/]*__($|/)")  # webdataset.tariterators.tar_file_iterator: skip_meta
MAX_PAYLOAD = 2**32 - 1  # bytes: u4 in RECORD
MAX_EXTRA_BLOCKS = 255  # high byte of the flags
PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd"}


@dataclass(frozen=True, slots=True)
class Rules:
    """Which member of a sample is its payload, what checks it, and where its label stands.

    A payload is the first member whose last extension is one of `extensions` (lower case, no dot);
    with `only`, the member with exactly this extension. The label: `.cls` holds a decimal number,
    or `.json` an object that has one under `label_key`.
    """

    extensions: Collection[str]
    inspect: Inspect | None = None
    label_key: str = "label"
    only: str | None = None

    def is_payload(self, ext: str) -> bool:
        """Whether a member of this extension is a payload."""
        if self.only is not None:
            return ext == self.only
        return ext.rpartition(".")[2] in self.extensions


@dataclass(frozen=True, slots=True)
class Payload:
    """What a record says of the bytes of a payload."""

    offset: int
    size: int
    crc: int
    width: int
    height: int
    flags: int


@dataclass(slots=True)
class Sample:
    """What a pass over the tar has found of one key."""

    key: str
    members: set[str] = field(default_factory=set)  # extensions
    images: list[str] = field(default_factory=list)  # extensions that can be the payload, in order
    payload: Payload | None = None  # the first of them, if nothing is wrong with it
    labels: dict[str, int] = field(default_factory=dict)  # extension -> class id

    @property
    def label(self) -> int:
        """The class id in `.cls`, or in `.json`; -1 where there is none."""
        return self.labels.get(LABEL, self.labels.get("json", -1))


def index_tar(
    path: str | Path,
    *,
    extensions: Collection[str],
    inspect: Inspect | None = None,
    report: Report | None = None,
) -> Index:
    """Index a local tar; see `index_stream`.

    Raises:
        ShardError: no plain tar, or a cut or damaged one.
    """
    told = report or (lambda key, reason: None)
    with Path(path).open("rb", buffering=CHUNK) as file:
        return index_stream(file, str(path), Rules(extensions, inspect), told)


def index_stream(file: BinaryIO, where: str, rules: Rules, report: Report) -> Index:
    """Index a plain tar by webdataset's rules: key = name up to the first dot of its last part.

    Told to `report(key, reason)`, with the key "" for the tar: samples without payload or whose
    payload `rules.inspect` refuses; members that repeat, lie apart from the rest of their sample,
    or are links; labels that are no numbers. Without `rules.inspect` width and height are 0.

    Raises:
        ShardError: no plain tar, or a cut or damaged one.
    """
    stream = Stream(file)
    samples = find_samples(stream, where, rules, report)
    if stream.drain():
        report("", "holds more after its end mark, which no reader sees; was it concatenated?")
    table: dict[str, int] = {}
    rows = [make_row(sample, table) for sample in samples if is_complete(sample, report)]
    tell_several(samples, report)
    return Index(np.array(rows, RECORD), tuple(table), stream.tell(), stream.sha256)


def find_samples(stream: Stream, where: str, rules: Rules, report: Report) -> list[Sample]:
    """Samples in the order in which their first members stand in the tar."""
    samples: dict[str, Sample] = {}
    before, broken = "", set()
    for member in read_members(stream, where):
        name = split_name(member.name)
        if name is None or member.isdir() or META.match(member.name):
            continue
        key, ext = name[0], name[1].lower()
        if not member.isreg() or member.issparse():
            if rules.is_payload(ext):
                report(key, f"member {ext!r} is a link or another special file; it is left out")
            continue
        if key in samples and key != before and key not in broken:
            broken.add(key)
            report(key, "its members do not stand together; webdataset makes two samples of them")
        sample, before = samples.setdefault(key, Sample(key)), key
        if ext in sample.members:
            report(key, f"a second member {ext!r} of this key; only the first is used")
            continue
        sample.members.add(ext)
        try:
            take_member(sample, ext, member, stream, rules)
        except SampleError as error:
            report(key, str(error))
    return list(samples.values())


def read_members(stream: Forward, where: str) -> Iterator[tarfile.TarInfo]:
    """Every member, with the stream at its first byte, of a tar that is whole up to its end mark.

    Raises:
        ShardError: no plain tar, or a cut or damaged one.
    """
    try:
        # it reads, tells and seeks forward, no more
        with tarfile.open(
            fileobj=cast(BinaryIO, stream), mode="r:", encoding="utf-8", errors="surrogateescape"
        ) as tar:
            while member := tar.next():
                yield member
                tar.members.clear()  # type: ignore[attr-defined]  # or they stay in memory
            end = tar.offset
    except tarfile.TarError as error:
        packed = [kind for magic, kind in PACKED.items() if stream.last.startswith(magic)]
        what = (
            f"is compressed with {packed[0]}" if packed else f"no plain tar, or a cut one ({error})"
        )
        raise ShardError(f"{where}: {what}; unpack it if compressed, or copy again") from error
    # tarfile takes a damaged header or a cut between two members for the end, without an error
    if len(stream.last) < BLOCK or stream.last.strip(b"\0"):
        raise ShardError(f"{where}: cut or damaged at byte {end:,}; copy or pack it again")


def take_member(
    sample: Sample, ext: str, member: tarfile.TarInfo, stream: Stream, rules: Rules
) -> None:
    """Read a payload or a label, with the stream at its first byte.

    Raises:
        SampleError: what is wrong with it.
    """
    if rules.is_payload(ext):
        sample.images.append(ext)
        if len(sample.images) == 1:
            sample.payload = read_payload(member, stream, rules.inspect)
    elif ext == LABEL:
        sample.labels[ext] = class_id(stream.read(member.size).decode("utf-8", "replace"))
    elif ext == "json":
        found = json_member(stream.read(member.size), rules.label_key)
        if found is not None:
            sample.labels[ext] = class_id(found)


def read_payload(member: tarfile.TarInfo, stream: Stream, inspect: Inspect | None) -> Payload:
    """Checksum and look at a payload.

    Raises:
        SampleError: from `inspect`, empty, or more than a record can hold.
    """
    extra = (member.offset_data - member.offset) // BLOCK - 1
    if not member.size:
        raise SampleError("its payload is empty")
    if member.size > MAX_PAYLOAD or extra > MAX_EXTRA_BLOCKS:
        raise SampleError(f"payload of {member.size:,} bytes or its name is too long for the index")
    data = stream.read(member.size)
    width, height = inspect(data) if inspect else (0, 0)
    flags = extra << EXTRA_BLOCKS | (GPU_JPEG if is_gpu_jpeg(data) else 0)
    return Payload(member.offset_data, member.size, zlib.crc32(data), width, height, flags)


def class_id(value: object) -> int:
    """A label as text or number; -1 says that there is none.

    Raises:
        SampleError: neither -1 nor a class id.
    """
    readable = isinstance(value, int | str) and not isinstance(value, bool)
    text = str(value).strip() if readable else ""
    if text == "-1":
        return -1
    if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) >= 2**31:
        raise SampleError(f"label {value!r} is no class id; it counts as none")
    return int(text)


def json_member(data: bytes, name: str) -> object:
    """What a JSON object has under a name; None without.

    Raises:
        SampleError: no JSON.
    """
    try:
        document = json.loads(data)
    except ValueError as error:
        raise SampleError(f"its .json does not parse ({error}); it has no label") from error
    return document.get(name) if isinstance(document, dict) else None


def is_complete(sample: Sample, report: Report) -> bool:
    """Whether a sample has a payload to stream; told if it never had one."""
    if not sample.images:
        report(sample.key, f"no payload among its members {', '.join(sorted(sample.members))}")
    return sample.payload is not None


def tell_several(samples: list[Sample], report: Report) -> None:
    """One line for a tar whose samples offer a choice of payloads."""
    several = [sample for sample in samples if len(sample.images) > 1]
    if several:
        first = several[0]
        report(
            "",
            f"{len(several):,} samples have several payloads, {first.key!r} for one "
            f"({', '.join(first.images)}): the first is used; choose another by its extension",
        )


def make_row(sample: Sample, table: dict[str, int]) -> Row:
    """One record; adds the extension to `table`."""
    payload = sample.payload
    assert payload is not None
    uid, ext = sample_id(sample.key), table.setdefault(sample.images[0], len(table))
    where = payload.offset, uid, payload.size, payload.crc
    return *where, sample.label, payload.width, payload.height, ext, payload.flags


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
