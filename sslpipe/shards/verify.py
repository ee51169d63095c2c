"""Check packed shards against their manifest, down to every sample."""

import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

from ..errors import SampleError, ShardError
from ..process import cores
from ..rng import sample_id
from .index import Index, file_sha256, header_range, parse_header, parse_index, split_name
from .manifest import Manifest, Shard, size_fault
from .scan import Inspect

AGAIN = "pack again or copy it again"


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
    inspect: Inspect,
    progress: Callable[[int], None] | None = None,
) -> list[Problem]:
    """Check sizes and hashes of tars and indexes, and header, CRC and decoding of every sample.

    Rows that the manifest excludes are not reported.

    `inspect`: a codec's, see `pack.Codec`. `progress` gets the number of samples of each finished
    shard, in order. Use `read_manifest` where damaged shards are to be listed, not refused.
    """
    problems: list[Problem] = []
    check = partial(check_shard, manifest, inspect=inspect)
    with ThreadPoolExecutor(cores()) as pool:
        found = pool.map(check, manifest.shards)
        for shard, faults in zip(manifest.shards, found, strict=True):
            problems.extend(faults)
            if progress:
                progress(shard.samples)
    return problems


def check_shard(manifest: Manifest, shard: Shard, *, inspect: Inspect) -> list[Problem]:
    """Everything that is wrong with one shard."""
    faults = [Problem(shard.file, "", what) for what in file_faults(manifest, shard)]
    try:
        index = load_index(manifest, shard)
    except ShardError as error:
        return [*faults, Problem(shard.file, "", str(error))]
    if not manifest.tar(shard).is_file():
        return faults
    with manifest.tar(shard).open("rb") as tar:
        skip = set(manifest.exclude.get(shard.file, ()))
        bad = sample_faults(tar, shard.file, index, inspect)
        return faults + [problem for problem in bad if problem.row not in skip]


def file_faults(manifest: Manifest, shard: Shard) -> Iterator[str]:
    """What is wrong with the tar as a file."""
    fault = size_fault(manifest, shard)
    if fault:
        yield fault
    elif file_sha256(manifest.tar(shard)) != shard.sha256:
        yield f"its content was changed (SHA-256 differs from the manifest); {AGAIN}"


def load_index(manifest: Manifest, shard: Shard) -> Index:
    """The index of a shard, if it is the one that the manifest means.

    Raises:
        ShardError: it is missing, damaged, or another one.
    """
    path = manifest.index(shard)
    if not path.is_file():
        raise ShardError(f"{path.name}: is missing; {AGAIN}")
    index = parse_index(path.read_bytes(), path.name)
    if (index.tar_sha256, len(index)) != (shard.sha256, shard.samples):
        raise ShardError(f"{path.name}: is the index of another tar; {AGAIN}")
    if file_sha256(path) != shard.index_sha256:
        raise ShardError(f"{path.name}: was changed (SHA-256 differs from the manifest); {AGAIN}")
    return index


def sample_faults(tar: BinaryIO, file: str, index: Index, inspect: Inspect) -> Iterator[Problem]:
    """What is wrong with each sample."""
    for number, record in enumerate(index.records):
        key = f"sample {number}"  # until the header tells
        try:
            key = check_header(tar, record)
            check_payload(tar, record, inspect)
        except SampleError as error:
            yield Problem(file, key, str(error), number)


def check_header(tar: BinaryIO, record: Any) -> str:
    """The key of a sample.

    Raises:
        SampleError: the tar header does not say what the index says.
    """
    start, length = header_range(record)
    tar.seek(start)
    member = parse_header(tar.read(length))
    name = split_name(member.name)
    if name is None or member.size != record["size"] or sample_id(name[0]) != record["uid"]:
        raise SampleError(
            f"the tar header names {member.name!r} of {member.size:,} bytes, not so the index"
        )
    return name[0]


def check_payload(tar: BinaryIO, record: Any, inspect: Inspect) -> None:
    """Compare the payload with its record.

    Raises:
        SampleError: cut, changed, or it does not decode to the size in the index, if that has one.
    """
    tar.seek(int(record["offset"]))
    data = tar.read(int(record["size"]))
    if len(data) < record["size"]:
        raise SampleError(f"was cut: {len(data):,} of {record['size']:,} bytes")
    if zlib.crc32(data) != record["crc"]:
        raise SampleError("its bytes were changed (CRC-32 differs from the index)")
    width, height = inspect(data)
    if record["width"] and (width, height) != (record["width"], record["height"]):
        raise SampleError(
            f"decodes to {width} x {height} pixels, "
            f"the index says {record['width']} x {record['height']}"
        )
