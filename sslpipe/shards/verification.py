"""Check packed shards against their manifest, down to every sample."""

import hashlib
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

from ..errors import SampleError, ShardError
from ..process import cores
from ..rng import sample_id
from .codec import Codec, Extent
from .index import Index, MemberRecord, file_sha256, filled, parse_index, said_of_tar
from .manifest import FILE, Manifest, Shard, size_fault
from .stopping import in_threads
from .tar_headers import parse_header, split_name

AGAIN = "pack again or copy it again"
CHANGED = f"its content was changed (SHA-256 differs from the manifest); {AGAIN}"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong in a shard; `key` is empty, `row` None where it is about the whole file."""

    shard: str
    key: str
    what: str
    row: int | None = None


def verify(
    manifest: Manifest,
    *,
    codec: Codec,
    progress: Callable[[int], None] | None = None,
    excluded: Callable[[Problem], None] | None = None,
) -> list[Problem]:
    """Check sizes and hashes of tars and indexes, and header and CRC of every member,
    and that every payload decodes to what its index says.

    Rows that the manifest excludes are not reported, nor that the SHA-256 of their tar differs if
    no other fault explains it: `excluded` gets them.

    `codec`: of the modality of the set. `progress` gets the number of samples of each finished
    shard, in order. Use `read_manifest` where damaged shards are to be listed, not refused.
    """
    problems = [Problem(FILE, "", what) for what in name_faults(manifest, codec)]
    check = partial(check_shard, manifest, codec=codec)
    with closing(in_threads(check, manifest.shards, cores())) as found:
        for shard, (faults, left_out) in zip(manifest.shards, found, strict=True):
            problems.extend(faults)
            if excluded:
                for problem in left_out:
                    excluded(problem)
            if progress:
                progress(shard.samples)
    return problems


def check_shard(
    manifest: Manifest, shard: Shard, *, codec: Codec
) -> tuple[list[Problem], list[Problem]]:
    """Everything that is wrong with one shard, and that which is of excluded rows."""
    faults = [Problem(shard.file, "", what) for what in file_faults(manifest, shard)]
    try:
        index = load_index(manifest, shard)
    except ShardError as error:
        return [*faults, Problem(shard.file, "", str(error))], []
    faults.extend(Problem(shard.file, "", what) for what in class_faults(manifest, index))
    if not manifest.tar(shard).is_file():
        return faults, []
    skip = set(manifest.exclude.get(shard.file, ()))
    with manifest.tar(shard).open("rb") as tar:
        found = list(sample_faults(tar, shard.file, index, codec))
    bad = [problem for problem in found if problem.row not in skip]
    left_out = [problem for problem in found if problem.row in skip]
    if left_out and not bad and [fault.what for fault in faults] == [CHANGED]:
        return [], [*faults, *left_out]  # the bytes that differ are those of these rows
    return faults + bad, left_out


def name_faults(manifest: Manifest, codec: Codec) -> Iterator[str]:
    """What is wrong with the names of numbers and bits: all sets of a modality have the codec's."""
    bits = dict(codec.flag_bits)
    if manifest.extent != codec.extents:
        yield f"names extents {[*manifest.extent]}, not {[*codec.extents]}; {AGAIN}"
    if dict(manifest.flags) != bits:
        yield f"names flags {dict(manifest.flags)}, not {bits}; {AGAIN}"


def file_faults(manifest: Manifest, shard: Shard) -> Iterator[str]:
    """What is wrong with the tar as a file."""
    fault = size_fault(manifest, shard)
    if fault:
        yield fault
    elif file_sha256(manifest.tar(shard)) != shard.sha256:
        yield CHANGED


def class_faults(manifest: Manifest, index: Index) -> Iterator[str]:
    """What is wrong with the labels of a shard; a set whose manifest names no classes has any."""
    labels, known = index.samples["label"], len(manifest.classes)
    if known and labels.max(initial=-1) >= known:
        yield (
            f"has label {labels.max()}, but the manifest names {known} classes; copy its "
            "manifest.json again"
        )


def load_index(manifest: Manifest, shard: Shard) -> Index:
    """The index of a shard, if it is the one that the manifest means.

    Raises:
        ShardError: it is missing, damaged, or another one.
    """
    path = manifest.index(shard)
    if not path.is_file():
        raise ShardError(f"{path.name}: is missing; {AGAIN}")
    data = path.read_bytes()
    return check_meant(parse_index(data, str(path)), data, shard, path.name)


def check_meant(index: Index, data: bytes, shard: Shard, where: str) -> Index:
    """An index, of bytes that were read, if it is the one that the manifest means.

    Raises:
        ShardError: it is another one, or was changed.
    """
    if said_of_tar(index) != (shard.sha256, shard.bytes, shard.samples):
        raise ShardError(f"{where}: is the index of another tar; {AGAIN}")
    if hashlib.sha256(data).hexdigest() != shard.index_sha256:
        raise ShardError(f"{where}: was changed (SHA-256 differs from the manifest); {AGAIN}")
    return index


def sample_faults(tar: BinaryIO, file: str, index: Index, codec: Codec) -> Iterator[Problem]:
    """What is wrong with each sample: the first fault of its members."""
    for row in range(len(index)):
        key = f"sample {row}"  # until the header tells
        try:
            payload = index.payload(row)
            key = check_header(tar, index, row, payload)
            for ext, member in index.members_of(row).items():
                data = check_bytes(tar, ext, member)
                if member == payload:
                    check_extent(codec.inspect(data), index.sample(row).extent)
                    check_flags(codec, data, index.sample(row).flags)
                else:
                    check_header(tar, index, row, member)
        except SampleError as error:
            yield Problem(file, key, str(error), row)


def check_header(tar: BinaryIO, index: Index, row: int, member: MemberRecord) -> str:
    """The key of a sample, by the tar header of one of its members.

    Raises:
        SampleError: the tar header does not say what the index says.
    """
    tar.seek(member.start)
    header = parse_header(tar.read(member.header))
    name = split_name(header.name)
    expected = index.sample(row).uid, index.extensions[member.ext], member.size
    if name is None or (sample_id(name[0]), name[1].lower(), header.size) != expected:
        raise SampleError(
            f"the tar header names {header.name!r} of {header.size:,} bytes, not so the index"
        )
    return name[0]


def check_bytes(tar: BinaryIO, ext: str, member: MemberRecord) -> bytes:
    """The bytes of a member, compared with its record.

    Raises:
        SampleError: cut or changed.
    """
    tar.seek(member.offset)
    data = tar.read(member.size)
    if len(data) < member.size:
        raise SampleError(f"its .{ext} was cut: {len(data):,} of {member.size:,} bytes")
    if zlib.crc32(data) != member.crc:
        raise SampleError(f"the bytes of its .{ext} were changed (CRC-32 differs from the index)")
    return data


def check_extent(found: Extent, indexed: Extent) -> None:
    """Compare what a payload decodes to with the index, if that knows it.

    A number that is found to be 0 is not of the payload: tokens, say, which are counted later.

    Raises:
        SampleError: they differ.
    """
    same = all(one in (0, other) for one, other in zip(filled(found), indexed, strict=True))
    if any(indexed) and not same:
        says = " x ".join(map(str, indexed[: len(found)]))
        raise SampleError(f"decodes to {' x '.join(map(str, found))}, the index says {says}")


def check_flags(codec: Codec, data: bytes, indexed: int) -> None:
    """Compare the bits that hold for a payload with those of the index.

    Raises:
        SampleError: they differ.
    """
    found, bits = codec.flags(data), codec.flag_bits
    if found != indexed:
        names = [
            ", ".join(name for name, bit in bits.items() if flags & bit) or "none"
            for flags in (found, indexed)
        ]
        raise SampleError(
            f"has the flags {names[0]} ({found}), the index says {names[1]} ({indexed})"
        )
