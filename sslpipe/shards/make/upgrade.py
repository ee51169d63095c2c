"""Make a set of version 1 one of version 2: new indexes and manifest, and not a byte of a tar.

Version 1 knew of payloads only. Which member is a payload, its label, size and flags are taken from
its indexes, so nothing is decoded and nothing chosen anew; each tar is read once for the others.

    56 bytes    magic, version, bytes of the extension table, records, tar_bytes, tar_sha256
    ...         extension table
    36 bytes x  records (RECORD_1): the low byte of `flags` is the codec's
"""

import struct
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...errors import SampleError, ShardError
from ..codec import Codec
from ..index import (
    MAGIC,
    Index,
    IndexBuilder,
    IndexedMember,
    file_sha256,
    index_path,
    write_index,
)
from ..manifest import (
    VERSION,
    Manifest,
    Shard,
    parse_manifest,
    read_document,
    root_and_file,
    write_manifest,
)
from ..read.tars import Tar, open_tar
from ..scan import META, read_member, read_members
from ..tar_headers import split_name
from ..tar_streams import HashedStream
from .indexing import Adopted, Indexed, ScannedTar, current_index, old_report, worked
from .source import is_local

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


def old_set(urls: list[str], out: str | Path | None) -> Path | None:
    """The folder of a set of version 1, if that is all that is to be indexed."""
    folder = Path(urls[0]) if len(urls) == 1 and is_local(urls[0]) else None
    inside = folder is not None and out in (None, urls[0], folder)
    return folder if folder is not None and inside and is_version_1(folder) else None


def upgrade(
    folder: Path,
    codec: Codec,
    *,
    name: str | None,
    threads: int | None,
    progress: Callable[[Indexed], None] | None,
) -> Adopted:
    """Give a set of version 1 new indexes, and new manifests for all that lie in its folder.

    `name`: of the set from now on. An upgrade that was cut short is gone on with.

    Raises:
        ShardError: a tar or an index is missing, damaged or of another set; the manifest is then
            still that of version 1.
    """
    old = read_any_manifest(folder, codec)
    shards = {shard.file: shard for shard in old.shards}

    def work(tar: Tar) -> ScannedTar:
        """Write the index of one tar, unless it is there."""
        place, shard = folder / tar.file, shards[tar.file]
        index = current_index(place, tar)
        if index is None or index.tar_sha256 != shard.sha256:
            write_index(place, upgrade_index(tar, shard, index_path(place)))
        return ScannedTar(tar, replace(shard, index_sha256=file_sha256(index_path(place))), ())

    found = worked(work, tars_of(old), threads, progress)
    new = replace(
        old, name=name or old.name, shards=tuple(done.shard for done in found if done.shard)
    )
    upgrade_others(folder, new, codec)
    write_manifest(new)  # last: until then the set is of version 1
    told = old_report(folder).values()
    return Adopted(new, tuple(problem for problems in told for problem in problems))


def upgrade_others(folder: Path, new: Manifest, codec: Codec) -> None:
    """Rewrite the manifests that excluding rows has left beside the newest one."""
    shards = {shard.file: shard for shard in new.shards}
    for path in folder.glob("manifest-*.json"):
        if is_version_1(path):
            old = read_any_manifest(path, codec)
            kept = tuple(shards.get(shard.file, shard) for shard in old.shards)
            write_manifest(replace(old, shards=kept), path.name)


def is_version_1(path: Path) -> bool:
    """Whether a folder holds the manifest of a set of version 1, or a file is one."""
    _, file = root_and_file(path)
    try:
        return Path(file).is_file() and read_document(path).get("version") == ONE
    except ShardError:
        return False


def read_any_manifest(path: Path, codec: Codec) -> Manifest:
    """A manifest of version 1 or 2; `codec` says what version 1 did not.

    Raises:
        ShardError: as `read_manifest`, but for version 1.
    """
    root, file = root_and_file(path)
    data = read_document(path)
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
    """The records of version 1 with all the members of their samples.

    Raises:
        ShardError: a sample is not in the tar where its record says.
    """
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
