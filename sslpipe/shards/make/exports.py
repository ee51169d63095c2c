"""The index of a shard set in the formats of others: DALI, wids, Megatron-Energon.

Their indexes list every member and group neighbours by key, so the tars' headers are read again
(payloads are passed over). What a format cannot express is refused, never written differently.
"""

import json
import os
import sqlite3
import tarfile
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from ...errors import ShardError
from ..manifest import Manifest, Shard
from ..read.tars import open_tar
from ..scan import META
from ..side_files import replace_file
from ..tar_headers import BLOCK, split_name
from .source import is_local

NAME_FIELD = 100  # bytes of a name in a plain tar header


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar, as webdataset names it."""

    name: str
    key: str
    ext: str  # as it stands in the tar, which may be upper case
    start: int  # of its header, long names included
    offset: int  # of its bytes
    size: int


@dataclass(frozen=True, slots=True)
class TarMembers:
    """The members of one tar that belong to samples, the others, and where the tar ends."""

    shard: Shard
    url: str
    members: tuple[Member, ...]
    others: tuple[str, ...]  # files that webdataset passes over
    end: int

    def samples(self) -> Iterator[tuple[str, list[Member]]]:
        """Neighbours of one key, as webdataset, DALI, wids and Energon group them."""
        for key, members in groupby(self.members, key=lambda member: member.key):
            yield key, list(members)


def list_members(url: str, shard: Shard) -> TarMembers:
    """Read the headers of one tar.

    Raises:
        ShardError: it is not readable, or not the one that was indexed.
    """
    found, others = [], []
    try:
        with open_tar(url) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while member := tar.next():
                parts = split_name(member.name)
                if not member.isreg() or member.issparse():
                    continue
                if parts is None or META.match(member.name):
                    others.append(member.name)
                else:
                    at = member.offset, member.offset_data, member.size
                    found.append(Member(member.name, *parts, *at))
                tar.members.clear()  # type: ignore[attr-defined]  # or they stay in memory
            end = tar.offset
    except (tarfile.TarError, OSError) as error:
        raise ShardError(f"{url}: cannot be read ({error}); index it again") from error
    return TarMembers(shard, url, tuple(found), tuple(others), end)


def check_kinds(names: str) -> list[str]:
    """`dali,wids` as a list.

    Raises:
        ShardError: an unknown one.
    """
    kinds = [kind for kind in names.split(",") if kind]
    for kind in kinds:
        if kind not in EXPORTS:
            raise ShardError(f"export {kind!r}: is unknown; choose from {', '.join(EXPORTS)}")
    return kinds


def export(manifest: Manifest, kind: str) -> Path:
    """Write the index of a set for another reader, and return the file or folder to give to it.

    `dali`: `X.idx` for each X.tar, for `fn.readers.webdataset(index_paths=...)`. `wids`:
    `shardindex.json`. `energon`: a folder `energon` of links to the tars and what
    `energon prepare` makes, with all shards in the split `train`.

    Raises:
        ShardError: a set that the format cannot express.
    """
    listings = (list_members(str(manifest.tar_place(shard)), shard) for shard in manifest.shards)
    return EXPORTS[kind](manifest, listings)


def export_dali(manifest: Manifest, listings: Iterator[TarMembers]) -> Path:
    """Write text as DALI's `wds2idx` 2.4 does: `v1.2 N`, then `ext offset size name ...` lines.

    Raises:
        ShardError: a name with blanks or without extension, which the format has no place for.
    """
    for listing in listings:
        lines = []
        for _, members in listing.samples():
            for member in members:
                if len(f"{member.ext} {member.name}".split()) != 2:
                    raise ShardError(
                        f"{listing.url}: {member.name!r}: DALI's index separates by blanks, so it "
                        "has no place for blanks in a name or a missing extension; rename it"
                    )
            parts = (f"{m.ext} {m.offset} {m.size} {m.name}" for m in members)
            lines.append(" ".join(parts))
        text = "\n".join([f"v1.2 {len(lines)}", *lines, ""])
        path = manifest.folder / (listing.shard.file.removesuffix(".tar") + ".idx")
        replace_file(path, text.encode("utf-8", "surrogateescape"))
    return manifest.folder


def export_wids(manifest: Manifest, listings: Iterator[TarMembers]) -> Path:
    """The shard list of `wids.ShardListDataset`: the number of samples of each tar by its rules."""
    shards = []
    for listing in listings:
        check_wids(listing)
        shard = listing.shard
        url = shard.url or shard.file
        count = sum(1 for _ in listing.samples())
        shards.append({"url": url, "nsamples": count, "filesize": shard.bytes})
    document = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": manifest.name}
    path = manifest.folder / "shardindex.json"
    replace_file(path, (json.dumps(document | {"shardlist": shards}, indent=1) + "\n").encode())
    return path


def check_wids(listing: TarMembers) -> None:
    """Refuse what wids 0.1 would misread: it would hand out other samples or bytes.

    Raises:
        ShardError: long or repeated names, or files that are samples for wids alone.
    """
    names = Counter(member.name for member in listing.members)
    for member in listing.members:
        long = len(member.name.encode("utf-8", "surrogateescape")) > NAME_FIELD
        if long or member.offset - member.start > BLOCK or names[member.name] > 1:
            raise ShardError(
                f"{listing.url}: {member.name!r}: wids reads names of up to {NAME_FIELD} bytes "
                "in plain headers, each once in a tar; rename it, or use another reader"
            )
    for name in listing.others:
        if "." in name:
            raise ShardError(
                f"{listing.url}: {name!r}: is a sample for wids, but not for webdataset; "
                "take it out of the tar, or use another reader"
            )


def export_energon(manifest: Manifest, listings: Iterator[TarMembers]) -> Path:
    """A data set of Megatron-Energon 7.4 in a folder of its own.

    Its index of X.tar is called X.tar.idx, like ours, and must lie beside the tar: hence links.
    """
    folder = manifest.folder / "energon"
    meta = folder / ".nv-meta"
    meta.mkdir(parents=True, exist_ok=True)
    counts: dict[str, int] = {}
    part = meta / "index.sqlite.part"
    part.unlink(missing_ok=True)
    with closing(sqlite3.connect(part)) as database, database:
        database.executescript(ENERGON_TABLES)
        for number, listing in enumerate(listings):
            link_tar(folder, listing)
            counts[listing.shard.file] = add_shard(database, folder, number, listing)
        database.executescript(ENERGON_INDEXES)
    part.replace(meta / "index.sqlite")
    write_energon_meta(meta, manifest, counts)
    return folder


def link_tar(folder: Path, listing: TarMembers) -> None:
    """A link to a local tar.

    Raises:
        ShardError: the tar is distant, or its name has no `.tar`.
    """
    file = listing.shard.file
    if not is_local(listing.url) or not file.endswith(".tar"):
        raise ShardError(
            f"{listing.url}: Energon needs its index beside X.tar; copy the tar here, "
            "or run `energon prepare` where it lies"
        )
    link = folder / file
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.relpath(listing.url, folder.resolve()))


def add_shard(database: sqlite3.Connection, folder: Path, number: int, listing: TarMembers) -> int:
    """Add the rows of one tar and write its X.tar.idx (sample offsets, then the end, u64); samples.

    Raises:
        ShardError: a key occurs twice.
    """
    samples = list(listing.samples())
    starts = [members[0].start for _, members in samples]
    ends = [*starts, listing.end]
    try:
        database.executemany(
            "INSERT INTO samples VALUES (?, ?, ?, ?, ?)",
            (
                (number, key, i, start, end - start)
                for i, ((key, _), start, end) in enumerate(
                    zip(samples, starts, ends[1:], strict=True)
                )
            ),
        )
    except sqlite3.IntegrityError as error:
        raise ShardError(
            f"{listing.url}: has a key that occurs before it or twice in it; Energon needs unique "
            "keys (`energon prepare --fix-duplicates` renames the members)"
        ) from error
    database.executemany(
        "INSERT INTO sample_parts VALUES (?, ?, ?, ?, ?)",
        ((number, i, m.ext, m.offset, m.size) for i, (_, ms) in enumerate(samples) for m in ms),
    )
    offsets = b"".join(offset.to_bytes(8, "little") for offset in ends)
    replace_file(folder / (listing.shard.file + ".idx"), offsets)
    return len(samples)


def write_energon_meta(meta: Path, manifest: Manifest, counts: Mapping[str, int]) -> None:
    """`.nv-meta`: counts, one split, an identity, and a loader that gives the raw members."""
    digest = bytes.fromhex(manifest.fingerprint.removeprefix("b2:"))
    info = json.dumps({"energon_version": "7.4.1", "shard_counts": counts}, indent=2)
    split = json.dumps({"split_parts": {"train": list(counts)}, "exclude": []}, indent=2)
    replace_file(meta / ".info.json", info.encode())
    replace_file(meta / "split.yaml", split.encode())  # JSON is YAML
    replace_file(meta / "index.uuid", str(uuid.UUID(bytes=digest)).encode())
    replace_file(meta / "dataset.yaml", ENERGON_LOADER.encode())


ENERGON_TABLES = """
CREATE TABLE samples (tar_file_id INTEGER NOT NULL, sample_key TEXT NOT NULL UNIQUE,
    sample_index INTEGER NOT NULL, byte_offset INTEGER, byte_size INTEGER);
CREATE TABLE sample_parts (tar_file_id INTEGER, sample_index INTEGER, part_name TEXT,
    content_byte_offset INTEGER, content_byte_size INTEGER);
"""
ENERGON_INDEXES = """
CREATE INDEX idx_samples_by_tar_and_idx ON samples(tar_file_id, sample_index);
CREATE INDEX idx_sample_parts_seq
    ON sample_parts(tar_file_id, sample_index, content_byte_offset);
CREATE INDEX idx_sample_parts_full ON sample_parts(
    tar_file_id, sample_index, part_name, content_byte_offset, content_byte_size);
"""
ENERGON_LOADER = "__module__: megatron.energon\n__class__: CrudeWebdataset\n"

EXPORTS: Mapping[str, Callable[[Manifest, Iterator[TarMembers]], Path]] = {
    "dali": export_dali,
    "wids": export_wids,
    "energon": export_energon,
}
