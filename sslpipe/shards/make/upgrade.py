"""Make a set of version 1 one of version 2: new indexes and manifest, and not a byte of a tar.

Version 1 knew of payloads only. Which member is a payload, its label, size and flags are taken from
its indexes, so nothing is decoded and nothing chosen anew; each tar is read once for the others.

    56 bytes    magic, version, bytes of the extension table, records, tar_bytes, tar_sha256
    ...         extension table
    36 bytes x  records (RECORD_1): the low byte of `flags` is the codec's
"""

import struct
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...errors import SampleError, ShardError
from ..codec import Codec
from ..index import MAGIC, Index, IndexBuilder, IndexedMember
from ..manifest import VERSION, Manifest, Shard, parse_manifest, places, read_document
from ..read.tars import Tar, open_tar
from ..scan import META, read_member, read_members
from ..tar_headers import split_name
from ..tar_streams import HashedStream

HEADER_1 = struct.Struct("<8sHHIQ32s")
RECORD_1 = np.dtype(
    [
        ("offset", "<u8"),
        ("uid", "<i8"),
        ("size", "<u4"),
        ("crc", "<u4"),
        ("label", "<i4"),
        ("width", "<u2"),
        ("height", "<u2"),
        ("ext", "<u2"),
        ("flags", "<u2"),
    ]
)
ONE = 1  # the version
Samples = dict[str, dict[str, IndexedMember]]  # key -> extension -> member
AGAIN = "make the set anew with `sslpipe index FOLDER --rebuild`, or copy it again"


def is_version_1(folder: Path) -> bool:
    """Whether a folder holds the manifest of a set of version 1."""
    _, file = places(folder)
    try:
        return Path(file).is_file() and read_document(folder).get("version") == ONE
    except ShardError:
        return False


def read_any_manifest(folder: Path, codec: Codec) -> Manifest:
    """A manifest of version 1 or 2; `codec` says what version 1 did not.

    Raises:
        ShardError: as `read_manifest`, but for version 1.
    """
    root, file = places(folder)
    data = read_document(folder)
    if data.get("version") == ONE:
        data |= {"version": VERSION, "modality": codec.modality}
        data |= {"extent": list(codec.extents), "flags": dict(codec.flag_bits)}
    return parse_manifest(data, root, file)


def tars_of(manifest: Manifest) -> list[Tar]:
    """The tars of a manifest, in its order."""
    return [Tar(str(manifest.tar_place(s)), s.file, s.bytes, 0.0) for s in manifest.shards]


def upgrade_index(tar: Tar, shard: Shard, index_file: Path) -> Index:
    """The index of version 2 of a tar, by that of version 1 in `index_file` and the tar itself.

    Raises:
        ShardError: one of them is missing, damaged, or not the one of the manifest.
    """
    records = read_old_records(index_file, shard)
    try:
        with open_tar(tar.url) as file:
            stream = HashedStream(file)
            samples = read_samples(stream, tar.url)
            stream.drain()
    except OSError as error:
        raise ShardError(f"{tar.url}: cannot be read ({error}); copy it again") from error
    if stream.sha256 != shard.sha256:
        raise ShardError(f"{tar.url}: was changed (SHA-256 differs from the manifest); {AGAIN}")
    return join(records, samples).finish(stream.tell(), stream.sha256)


def read_old_records(path: Path, shard: Shard) -> npt.NDArray[np.void]:
    """The records of an index of version 1: (n,) of RECORD_1.

    Raises:
        ShardError: it is missing, or not the one of the manifest.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror}); {AGAIN}") from error
    if sha256(data).hexdigest() != shard.index_sha256 or not data.startswith(MAGIC):
        raise ShardError(f"{path}: was changed (SHA-256 differs from the manifest); {AGAIN}")
    _, _, table, count, _, _ = HEADER_1.unpack_from(data)
    return np.frombuffer(data, RECORD_1, count=count, offset=HEADER_1.size + table)


def read_samples(stream: HashedStream, where: str) -> Samples:
    """Key -> members by extension, the first of those that repeat."""
    samples: Samples = {}
    for member in read_members(stream, where):
        name = split_name(member.name)
        if name is None or META.match(member.name) or not member.isreg() or member.issparse():
            continue
        key, ext = name[0], name[1].lower()
        if ext not in samples.setdefault(key, {}):
            try:
                samples[key][ext], _ = read_member(ext, member, stream)
            except SampleError:  # too large for an index: as if it were not there
                continue
    return samples


def join(records: npt.NDArray[np.void], samples: Samples) -> IndexBuilder:
    """The records of version 1 with all the members of their samples."""
    builder = IndexBuilder()
    by_offset = {
        member.offset: (members, ext)
        for members in samples.values()
        for ext, member in members.items()
    }
    for record in records.tolist():
        offset, uid, _, _, label, width, height, _, flags = record
        if offset not in by_offset:
            raise ShardError(f"sample {uid}: is not in the tar where its index says; {AGAIN}")
        members, ext = by_offset[offset]
        extent = (height, width)
        builder.add(
            uid, members.values(), payload=ext, extent=extent, label=label, flags=flags & 0xFF
        )
    return builder
