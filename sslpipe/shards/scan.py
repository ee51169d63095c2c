"""Build the index of a tar, ours or anyone's: GNU long names, PAX, members in any order.

One pass from the first byte to the last, so that a distant tar is streamed once and never stored.
"""

import math
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from ..errors import SampleError, ShardError
from ..process import regular_file
from ..rng import sample_id
from .codec import Codec, Extent, payload_extent
from .index import MAX_BLOCKS, MAX_BYTES, Index, IndexBuilder, IndexedMember
from .side_files import parse_json
from .tar_headers import BLOCK, split_name
from .tar_streams import CHUNK, Forward, HashedStream

Report = Callable[[str, str], None]  # key, reason
Look = Literal["none", "header", "decode"]

TOLD = 60  # characters of a wrong label in a message
LABEL = "cls"  # extension of a class id
META = re.compile(r"__[^/]*__($|/)")  # webdataset.tariterators.tar_file_iterator: skip_meta
# as tables with gaps (2.0) and numpy.savetxt (2.000e+00) write it
NUMBER = re.compile(r"[+-]?[0-9]{1,30}(\.[0-9]{0,30})?([eE][+-]?[0-9]{1,2})?")
PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd"}


@dataclass(frozen=True, slots=True)
class Rules:
    """Which member of a sample is its payload, how it is looked at, and where its label stands.

    A payload is the first member whose last extension is one of the codec's; with `only`, the
    member with exactly this extension. `look`: "decode" it, read its "header", or do neither and
    leave its extent unknown. The label: `.cls` holds a whole number, or `.json` an object that
    has one under `label_key`; see `class_id`.
    """

    codec: Codec
    look: Look = "header"
    label_key: str = "label"
    only: str | None = None

    def is_payload(self, ext: str) -> bool:
        """Whether a member of this extension can be a payload."""
        if self.only is not None:
            return ext == self.only
        return ext.rpartition(".")[2] in self.codec.extensions

    def extent(self, data: bytes) -> Extent:
        """The extent of a payload; SampleError: it is refused."""
        if self.look == "none":
            return ()
        return payload_extent(self.codec, data, decode=self.look == "decode")


@dataclass(slots=True)
class TarSample:
    """What a pass over the tar has found of one key."""

    key: str
    members: dict[str, IndexedMember] = field(default_factory=dict)  # by extension
    seen: set[str] = field(default_factory=set)  # extensions, those that were refused too
    payloads: list[str] = field(default_factory=list)  # extensions that can be it, in order
    sound: bool = False  # nothing is wrong with the first of them
    extent: Extent = ()  # of the payload
    flags: int = 0
    labels: dict[str, int] = field(default_factory=dict)  # extension -> class id

    @property
    def label(self) -> int:
        """The class id in `.cls`, or in `.json`; -1 where there is none."""
        return self.labels.get(LABEL, self.labels.get("json", -1))


def index_tar(path: str | Path, rules: Rules, report: Report | None = None) -> Index:
    """Index a local tar; see `index_stream`.

    Raises:
        ShardError: no plain tar, or a cut or damaged one.
    """
    told = report or (lambda key, reason: None)
    with regular_file(path).open("rb", buffering=CHUNK) as file:
        return index_stream(file, str(path), rules, told)


def index_stream(file: BinaryIO, where: str, rules: Rules, report: Report) -> Index:
    """Index a plain tar by webdataset's rules: key = name up to the first dot of its last part.

    Told to `report(key, reason)`, with the key "" for the tar: samples without payload or whose
    payload the codec refuses; members that repeat, lie apart from the rest of their sample, are
    links, or are too large; labels that are no numbers.

    Raises:
        ShardError: no plain tar, or a cut or damaged one.
    """
    stream = HashedStream(file)
    samples = find_samples(stream, where, rules, report)
    if stream.drain():
        report("", "holds more after its end mark, which no reader sees; was it concatenated?")
    builder = IndexBuilder(where)
    for sample in samples:
        if is_complete(sample, report):
            builder.add(
                sample_id(sample.key),
                sample.members.values(),
                payload=sample.payloads[0],
                extent=sample.extent,
                label=sample.label,
                flags=sample.flags,
            )
    tell_several(samples, report)
    return builder.finish(stream.tell(), stream.sha256)


def find_samples(stream: HashedStream, where: str, rules: Rules, report: Report) -> list[TarSample]:
    """Samples in the order in which their first members stand in the tar."""
    samples: dict[str, TarSample] = {}
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
        sample, before = samples.setdefault(key, TarSample(key)), key
        if ext in sample.seen:
            report(key, f"a second member {ext!r} of this key; only the first is used")
            continue
        sample.seen.add(ext)
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
    sample: TarSample, ext: str, member: tarfile.TarInfo, stream: HashedStream, rules: Rules
) -> None:
    """Read a member, with the stream at its first byte.

    Raises:
        SampleError: what is wrong with it; all but a payload is kept nevertheless.
    """
    is_payload = rules.is_payload(ext)
    if is_payload:
        sample.payloads.append(ext)
    first = is_payload and len(sample.payloads) == 1
    place, data = read_member(ext, member, stream)
    if first and not data:
        raise SampleError("its payload is empty")
    sample.members[ext] = place
    if first:
        sample.extent, sample.flags = rules.extent(data), rules.codec.flags(data)
        sample.sound = True
    elif ext == LABEL:
        sample.labels[ext] = told_label(data.decode("utf-8", "replace"))
    elif ext == "json":
        found = json_member(data, rules.label_key)
        if found is not None:
            sample.labels[ext] = told_label(found)


def read_member(
    ext: str, member: tarfile.TarInfo, stream: HashedStream
) -> tuple[IndexedMember, bytes]:
    """Where a member lies, and its bytes.

    Raises:
        SampleError: it is more than an index can hold.
    """
    blocks = (member.offset_data - member.offset) // BLOCK
    if member.size > MAX_BYTES or blocks > MAX_BLOCKS or "\n" in ext:
        raise SampleError(
            f"member {ext!r} of {member.size:,} bytes: it or its name is too long for the index "
            "(4 GiB), or holds a line break; it is left out"
        )
    data = stream.read(member.size)
    return IndexedMember(ext, member.offset_data, member.size, zlib.crc32(data), blocks), data


def class_id(value: object) -> int:
    """A label as text, number or tensor of one; -1 says that there is none, as do None and "".

    Raises:
        SampleError: neither nothing, -1 nor a whole number in [0, 2**31).
    """
    if value is None or (isinstance(value, str | bytes) and not value.strip()):
        return -1
    number = whole_number(value)
    if number is None or not -1 <= number < 2**31:
        told = repr(value)
        told = told if len(told) <= TOLD else told[:TOLD] + "..."
        raise SampleError(f"label {told} is no class id (0 to 2,147,483,647; -1 or nothing: none)")
    return number


def whole_number(value: object) -> int | None:
    """The one rule for numbers in labels: 3, 3.0, "3", " +3 ", "3.0", "3e0" and tensor(3) are 3.

    None for everything else: parts, truth values, words.
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        value = Decimal(value.strip()) if NUMBER.fullmatch(value.strip()) else None
        return int(value) if value is not None and value % 1 == 0 else None
    if math.prod(getattr(value, "shape", (0,))) == 1:  # of numpy or torch
        value = cast(Any, value).item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if value % 1 == 0 else None  # NaN for an infinite one


def told_label(value: object) -> int:
    """The class id of a member.

    Raises:
        SampleError: it is none, and the sample is used without.
    """
    try:
        return class_id(value)
    except SampleError as error:
        raise SampleError(f"{error}; it counts as none") from None


def json_member(data: bytes, name: str) -> object:
    """What a JSON object has under a name; None without.

    Raises:
        SampleError: no JSON.
    """
    try:
        document = parse_json(data)
    except ValueError as error:
        raise SampleError(f"its .json does not parse ({error}); it has no label") from error
    return document.get(name) if isinstance(document, dict) else None


def is_complete(sample: TarSample, report: Report) -> bool:
    """Whether a sample has a payload to stream; told if it never had one."""
    if not sample.payloads:
        report(sample.key, f"no payload among its members {', '.join(sorted(sample.seen))}")
    return sample.sound


def tell_several(samples: list[TarSample], report: Report) -> None:
    """One line for a tar whose samples offer a choice of payloads."""
    several = [sample for sample in samples if len(sample.payloads) > 1]
    if several:
        first = several[0]
        report(
            "",
            f"{len(several):,} samples have several payloads, {first.key!r} for one "
            f"({', '.join(first.payloads)}): the first is used; choose another by its extension",
        )
