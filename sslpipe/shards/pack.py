"""Pack a folder of files into tar shards with indexes and a manifest.

    list -> shuffle -> read and check (threads) -> cut into shards -> write, index -> manifest

The manifest is written last: an interrupted run leaves none, and the same command starts over.
"""

import json
import os
import re
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tarfile import RECORDSIZE, TarInfo
from typing import Protocol, TypeVar

from webdataset import TarWriter

from ..errors import SampleError, ShardError
from .index import BLOCK, file_sha256, index_path, replace_file, write_index
from .listing import list_inputs, shuffled
from .manifest import FILE, Manifest, Shard, write_manifest
from .scan import index_tar
from .source import Note, Source, read

REPORT = "report.jsonl"
AHEAD = 4  # files in flight per thread: hides slow ones, bounds memory

A = TypeVar("A")
B = TypeVar("B")


class Codec(Protocol):
    """What packing knows of a modality."""

    @property
    def extensions(self) -> frozenset[str]:
        """File extensions to pack: lower case, without dot."""

    @property
    def shrunk_extension(self) -> str:
        """Extension of what `shrink` makes."""

    def inspect(self, data: bytes) -> tuple[int, int]:
        """Decode everything and return (width, height); SampleError with the reason."""

    def shrink(self, data: bytes, *, side: int, quality: int) -> bytes:
        """Re-encode with a shorter side of at most `side`; SampleError with the reason."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How one file becomes a payload."""

    codec: Codec
    resize: int | None
    quality: int


@dataclass(frozen=True, slots=True)
class Packed:
    """Progress: one file is finished, of `total`."""

    file: str
    bytes_in: int
    bytes_out: int
    ok: bool
    total: int


@dataclass(frozen=True, slots=True)
class PackReport:
    """What `pack` made, and what it could not take."""

    manifest: Manifest
    failures: tuple[Note, ...]  # files that do not read or decode
    skipped: tuple[Note, ...]  # files that were not meant


@dataclass(frozen=True, slots=True)
class Loaded:
    """A file after reading and checking; `reason` says why there is no payload."""

    source: Source
    bytes_in: int = 0
    payload: bytes = b""
    ext: str = ""  # of the payload
    size: tuple[int, int] = (0, 0)  # width, height
    reason: str = ""


def pack(
    folder: str | Path,
    out: str | Path,
    *,
    codec: Codec,
    resize: int | None = None,
    quality: int = 90,
    shard_bytes: int = 64 * 2**20,
    seed: int = 0,
    name: str | None = None,
    threads: int | None = None,
    progress: Callable[[Packed], None] | None = None,
) -> PackReport:
    """Pack `folder` into `out`; the same files and settings give the same bytes.

    First-level folders are the classes, sorted; files at the root get label -1. `resize`: shorter
    side in pixels, never up, re-encoded; None keeps the original bytes. `shard_bytes`: upper
    limit of a tar that holds more than one sample. `name`: prefix of the shards, else the folder's.
    Files that do not decode are listed in `out/report.jsonl`, and the run goes on.

    Raises:
        ShardError: nothing to pack, nothing that decodes, or `out` already holds shards.
    """
    folder, out = Path(folder), Path(out)
    check_places(folder, out)
    listing = list_inputs([folder], out=out, extensions=codec.extensions)
    prefix = shard_prefix(name, folder)
    clear(out, prefix)
    failures: list[Note] = []
    load_one = partial(load, settings=Settings(codec, resize, quality))
    threads = threads or os.cpu_count() or 1
    sources = shuffled(listing.sources, seed)
    loaded = ordered_map(load_one, sources, threads, ahead=AHEAD * threads)
    good = keep_good(loaded, len(listing.sources), failures, progress)
    extensions = codec.extensions | {codec.shrunk_extension}
    write_one = partial(write_shard, extensions=extensions, labelled=bool(listing.classes))
    groups = ((out / f"{prefix}-{i:06d}.tar", g) for i, g in enumerate(cut(good, shard_bytes)))
    shards = tuple(ordered_map(write_one, groups, threads=1, ahead=1))  # while others load
    write_report(out, failures, listing.skipped)
    if not shards:
        raise ShardError(f"{folder}: none of {len(failures):,} files decodes; see {out / REPORT}")
    manifest = Manifest(prefix, out, listing.classes, shards, seed, resize)
    write_manifest(manifest)
    return PackReport(manifest, tuple(sorted(failures)), listing.skipped)


def check_places(folder: Path, out: Path) -> None:
    if not folder.is_dir():
        raise ShardError(f"{folder}: is no folder; check the path")
    if out.exists() and not out.is_dir():
        raise ShardError(f"{out}: is a file; name a new folder for the shards")
    if out.resolve() == folder.resolve():
        raise ShardError(f"{out}: is the folder to pack; name another one for the shards")
    if (out / FILE).exists():
        raise ShardError(f"{out}: already holds packed shards; remove them or name a new folder")


def shard_prefix(name: str | None, folder: Path) -> str:
    """The given name, or the folder's with everything unusual replaced."""
    if name is None:
        return re.sub(r"[^\w.-]", "_", folder.resolve().name).lstrip(".") or "shards"
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ShardError(f"name {name!r}: use letters, digits, dots and dashes only")
    return name


def clear(out: Path, prefix: str) -> None:
    """Make `out`; remove what an interrupted run left under this name."""
    out.mkdir(parents=True, exist_ok=True)
    leftover = re.compile(re.escape(prefix) + r"-\d{6,}\.tar(\.idx)?(\.part)?")
    for path in list(out.iterdir()):
        if leftover.fullmatch(path.name) or path.name in (REPORT, f"{FILE}.part"):
            path.unlink()


def ordered_map(
    function: Callable[[A], B], items: Iterable[A], threads: int, ahead: int
) -> Iterator[B]:
    """`map` on threads, in order, at most `ahead` items before the one that is asked for."""
    pending: deque[Future[B]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def load(source: Source, settings: Settings) -> Loaded:
    """Read, shrink if asked, and decode what will be written."""
    codec = settings.codec
    try:
        data = read(source.place)
    except OSError as error:
        return Loaded(source, reason=f"cannot be read: {error.strerror}")
    payload, ext = data, source.ext
    try:
        if settings.resize is not None:
            payload = codec.shrink(data, side=settings.resize, quality=settings.quality)
            ext = codec.shrunk_extension
        return Loaded(source, len(data), payload, ext, codec.inspect(payload))
    except SampleError as error:
        return Loaded(source, len(data), reason=str(error))


def keep_good(
    loaded: Iterable[Loaded],
    total: int,
    failures: list[Note],
    progress: Callable[[Packed], None] | None,
) -> Iterator[Loaded]:
    """Pass on what has a payload; note the rest in `failures`, and report progress."""
    for item in loaded:
        file, ok = item.source.file, not item.reason
        if progress:
            progress(Packed(file, item.bytes_in, len(item.payload), ok, total))
        if ok:
            yield item
        else:
            failures.append(Note(file, item.reason))


def cut(samples: Iterable[Loaded], shard_bytes: int) -> Iterator[list[Loaded]]:
    """Groups of samples whose tars stay within `shard_bytes`, if more than one is in them."""
    group: list[Loaded] = []
    used = 0
    for sample in samples:
        size = tar_bytes(sample)
        if group and padded(used + size + 2 * BLOCK, RECORDSIZE) > shard_bytes:  # end mark
            yield group
            group, used = [], 0
        group.append(sample)
        used += size
    if group:
        yield group


def tar_bytes(sample: Loaded) -> int:
    """Bytes of a sample in a tar, at most: payload, label and their headers with long names."""
    header = len(TarInfo(f"{sample.source.key}.{sample.ext}").tobuf())
    return 2 * header + BLOCK + padded(len(sample.payload), BLOCK)


def padded(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def write_shard(
    job: tuple[Path, list[Loaded]], *, extensions: Collection[str], labelled: bool
) -> Shard:
    """Write one tar and its index, each under its final name only when it is whole."""
    path, samples = job
    part = path.with_name(path.name + ".part")
    write_tar(part, samples, labelled)
    index = index_tar(part, extensions=extensions)
    assert index.records["uid"].tolist() == [s.source.uid for s in samples]
    index.records["width"] = [s.size[0] for s in samples]
    index.records["height"] = [s.size[1] for s in samples]
    part.replace(path)
    write_index(path, index)
    return Shard(
        path.name, len(index), index.tar_bytes, index.tar_sha256, file_sha256(index_path(path))
    )


def write_tar(path: Path, samples: list[Loaded], labelled: bool) -> None:
    """Plain WebDataset tar with all times, owners and modes fixed."""
    with (
        path.open("wb") as file,
        TarWriter(
            file, encoder=False, user="sslpipe", group="sslpipe", mode=0o444, mtime=0
        ) as writer,
    ):
        for sample in samples:
            label = {"cls": str(sample.source.label).encode()} if labelled else {}
            writer.write({"__key__": sample.source.key, sample.ext: sample.payload, **label})


def write_report(out: Path, failures: Iterable[Note], skipped: Iterable[Note]) -> None:
    """`report.jsonl`: one line per file that is not in the shards; no file if there is none."""
    lines = [
        json.dumps({"kind": kind, "file": note.file, "reason": note.reason}, ensure_ascii=False)
        for kind, notes in (("failed", failures), ("skipped", skipped))
        for note in sorted(notes)
    ]
    if lines:
        replace_file(out / REPORT, ("\n".join(lines) + "\n").encode("utf-8", "replace"))
