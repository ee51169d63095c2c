"""What a worker of packing does, in whatever thread, process or machine: it decides nothing.

Every function takes one picklable job and returns what came of it, faults included: what is
raised in a worker loses its place on the way home in some pools.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import SampleError
from ..codec import Codec, Extent, histogram, payload_extent
from ..index import Index, file_sha256, index_path, write_index
from ..manifest import Shard
from ..tar_streams import CHUNK
from .documents import document_at
from .frames import film_at
from .plan import NAMES, PackSettings, ShardJob
from .source import InputFile, Note, Origin, read
from .writer import ShardWriter

UNKNOWN_BYTES = 100_000  # of a payload, where none of the sample can be packed


@dataclass(frozen=True, slots=True)
class ShardDone:
    """A finished shard; None where no source of it was good."""

    number: int
    shard: Shard | None
    bytes_in: int
    failures: tuple[Note, ...]
    formats: dict[str, int]  # extension of the payload -> samples
    sizes: dict[str, int]  # histogram of the codec's measure


@dataclass(frozen=True, slots=True)
class JobFault:
    """Why a job came to nothing."""

    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class LoadedFile:
    """A source as it goes into the tar."""

    source: InputFile
    bytes_in: int
    payload: bytes
    ext: str  # of the payload
    extent: Extent
    flags: int
    extras: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class HashJob:
    """Sources to hash, so that equal ones are found."""

    number: int
    sources: tuple[InputFile, ...]
    settings: PackSettings


@dataclass(frozen=True, slots=True)
class Hashed:
    """Per source of the job: hash of the content, or None where it does not read or decode."""

    number: int
    hashes: tuple[str | None, ...]  # hexadecimal
    bytes_in: int


@dataclass(frozen=True, slots=True)
class SizeJob:
    """Sources whose payload sizes stand for others."""

    sources: Sequence[InputFile]
    settings: PackSettings


@dataclass(frozen=True, slots=True)
class Sized:
    """Bytes of the payloads of those sources that can be packed."""

    sizes: tuple[int, ...]

    @property
    def mean(self) -> int:
        """Bytes of a payload, rounded up; a guess where there is none."""
        return -(-sum(self.sizes) // len(self.sizes)) if self.sizes else UNKNOWN_BYTES


def size_payloads(job: SizeJob) -> Sized | JobFault:
    """Make every payload in order to know its size."""
    sizes = []
    for source in job.sources:
        try:
            sizes.append(len(load(source, job.settings).payload))
        except SampleError:  # packing it fails too, and says why
            pass
        except Exception as error:
            return JobFault(source.file, f"{type(error).__name__}: {error}")
    return Sized(tuple(sizes))


def pack_shard(job: ShardJob) -> ShardDone | JobFault:
    """Write one tar and its index, each under its final name only when it is whole."""
    try:
        return write_shard(job)
    except OSError as error:
        return JobFault(job.file, error.strerror or str(error))
    except Exception as error:
        return JobFault(job.file, f"{type(error).__name__}: {error}")


def write_shard(job: ShardJob) -> ShardDone:
    """What `pack_shard` does, with errors raised."""
    path = Path(job.folder) / job.file
    part = path.with_name(f"{path.name}.{job.run}.part")
    failures: list[Note] = []
    try:
        index, bytes_in = write_tar(part, job, failures)
        shard = publish(part, path, index) if len(index) else None
    finally:
        part.unlink(missing_ok=True)
    codec = job.settings.codec
    return ShardDone(
        job.number, shard, bytes_in, tuple(failures), formats(index), sizes(index, codec)
    )


def write_tar(part: Path, job: ShardJob, failures: list[Note]) -> tuple[Index, int]:
    """The index of what was written, and how many bytes were read for it."""
    bytes_in = 0
    # what is written at once lies at once in the page cache, whence reading costs a quarter less
    with part.open("wb", buffering=CHUNK) as file:
        writer = ShardWriter(file)
        for loaded in load_all(job, failures):
            writer.add(
                loaded.source.key,
                loaded.ext,
                loaded.payload,
                label=loaded.source.label if job.labelled else None,
                extent=loaded.extent,
                flags=loaded.flags,
                extras=loaded.extras,
            )
            bytes_in += loaded.bytes_in
        return writer.finish(), bytes_in


def publish(part: Path, path: Path, index: Index) -> Shard:
    """Give tar and index their final names."""
    write_index(part, index)
    part.replace(path)
    index_path(part).replace(index_path(path))
    sums = index.tar_bytes, index.tar_sha256, file_sha256(index_path(path))
    return Shard(path.name, len(index), *sums)


def load_all(job: ShardJob, failures: list[Note]) -> Iterator[LoadedFile]:
    """Pass on what has a payload; note the rest in `failures`."""
    for source in job.sources:
        try:
            yield load(source, job.settings)
        except SampleError as error:
            failures.append(Note(source.file, str(error)))


def load(source: InputFile, settings: PackSettings) -> LoadedFile:
    """Read, check, and shrink if asked.

    Raises:
        SampleError: it cannot be read, does not decode, or is not what its name says.
    """
    data = readable(source.place)
    codec = settings.codec
    extras = {ext: readable(what) for ext, what in source.extras}
    if settings.keep_names:
        # lone surrogates are names in no encoding: ASCII with escapes keeps them
        extras[NAMES] = json.dumps({"file": source.file}).encode()
    if settings.resize is not None:
        payload = codec.shrink(data, side=settings.resize, quality=settings.quality)
        # `shrink` decoded everything
        ext, extent = codec.shrunk_extension, payload_extent(codec, payload, decode=False)
    else:
        extent = payload_extent(codec, data, decode=settings.check == "decode")
        payload, ext = data, codec.extension(data)
        if ext == "txt" and source.file.lower().endswith(".json"):
            raise SampleError("is called .json and holds no JSON object; correct or rename it")
    return LoadedFile(source, len(data), payload, ext, extent, codec.flags(payload), extras)


def readable(what: bytes | Origin) -> bytes:
    """Bytes as they are, or those at a place.

    Raises:
        SampleError: they cannot be read.
    """
    if isinstance(what, bytes):
        return what
    try:
        if what.frames is not None:
            return film_at(what)
        return read(what) if what.column is None else document_at(what)
    except OSError as error:
        raise SampleError(f"cannot be read: {error.strerror or error}") from error


def formats(index: Index) -> dict[str, int]:
    """Extension -> samples that have such a payload, in the order of the tar."""
    counts = np.bincount(index.payloads["ext"], minlength=len(index.extensions)).tolist()
    return {ext: count for ext, count in zip(index.extensions, counts, strict=True) if count}


def sizes(index: Index, codec: Codec) -> dict[str, int]:
    """How many samples of a shard have which size, by the bins of its codec."""
    return histogram(codec, index.samples["extent"])


def hash_sources(job: HashJob) -> Hashed | JobFault:
    """Hash the content of every source, or what it looks like."""
    try:
        found = [hash_source(source, job.settings) for source in job.sources]
    except Exception as error:
        return JobFault(f"hashes of chunk {job.number}", f"{type(error).__name__}: {error}")
    hashes, sizes = zip(*found, strict=True)
    return Hashed(job.number, hashes, sum(sizes))


def hash_source(source: InputFile, settings: PackSettings) -> tuple[str | None, int]:
    """The hash, and how many bytes were read."""
    try:
        data = readable(source.place)
    except SampleError:  # packing it fails too, and says why
        return None, 0
    if settings.dedupe == "exact":
        return hashlib.blake2b(data, digest_size=16).hexdigest(), len(data)
    try:
        return f"{settings.codec.perceptual_hash(data):016x}", len(data)
    except SampleError:
        return None, len(data)
