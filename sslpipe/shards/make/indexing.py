"""What all ways to index tars share: results, threads, indexes that are kept, and the report."""

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ...errors import ShardError
from ...process import cores
from ..index import Index, index_path, read_index
from ..manifest import Manifest, Shard
from ..read.tars import Tar
from ..side_files import read_objects, replace_file
from ..stopping import in_threads
from ..verification import Problem
from .journal import REPORT

KIND = "index"  # of our lines in report.jsonl
LINE = "line of a report"


@dataclass(frozen=True, slots=True)
class Indexed:
    """Progress: one tar is finished, of `total`."""

    url: str
    bytes: int
    samples: int
    kept: bool  # its index was there and up to date
    total: int


@dataclass(frozen=True, slots=True)
class Adopted:
    """A shard set made of existing tars; `problems` also stand in its `report.jsonl`."""

    manifest: Manifest
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class ScannedTar:
    """What indexing one tar gave; no shard if it cannot be read or holds no sample."""

    tar: Tar
    shard: Shard | None
    problems: tuple[Problem, ...]
    kept: bool = False


def worked(
    work: Callable[[Tar], ScannedTar],
    tars: list[Tar],
    threads: int | None,
    progress: Callable[[Indexed], None] | None,
) -> list[ScannedTar]:
    """What the work on every tar gave, in order, told as it comes."""
    found = []
    with closing(in_threads(work, tars, threads or cores())) as results:
        for done in results:
            found.append(done)
            if progress:
                samples = done.shard.samples if done.shard else 0
                progress(Indexed(done.tar.url, done.tar.bytes, samples, done.kept, len(tars)))
    return found


def current_index(place: Path, tar: Tar) -> Index | None:
    """The index that is there, if it is whole, not older than the tar, and of the tar's size."""
    path = index_path(place)
    if not path.is_file() or (tar.modified and path.stat().st_mtime < tar.modified):
        return None
    try:
        index = read_index(place)
    except ShardError:
        return None
    return index if len(index) and index.tar_bytes == tar.bytes else None


def old_report(folder: Path) -> dict[str, list[Problem]]:
    """Problems of an earlier run, by shard, for tars that are not read again."""
    told: dict[str, list[Problem]] = {}
    for row in report_rows(folder):
        if row["kind"] == KIND:
            told.setdefault(row["file"], []).append(Problem(row["file"], row["key"], row["reason"]))
    return told


def report_rows(folder: Path) -> list[dict[str, str]]:
    """The lines of the report that is there; none without one.

    Raises:
        ShardError: a line is none of ours.
    """
    path, rows = folder / REPORT, list[dict[str, str]]()
    for number, row in read_objects(path, LINE) if path.is_file() else ():
        texts = [row.get("kind"), row.get("file"), row.get("reason")]
        texts += [row.get("key")] if row.get("kind") == KIND else []
        if not all(isinstance(text, str) for text in texts):
            raise ShardError(f"{path}:{number}: is no {LINE}; remove the line")
        rows.append(row)
    return rows


def write_problems(folder: Path, problems: list[Problem]) -> None:
    """Our lines of `report.jsonl`, one per problem, beside those of `pack`; no empty file."""
    rows = [row for row in report_rows(folder) if row["kind"] != KIND]
    rows += [{"kind": KIND, "file": p.shard, "key": p.key, "reason": p.what} for p in problems]
    if rows:
        replace_file(folder / REPORT, "".join(json.dumps(row) + "\n" for row in rows).encode())
    else:
        (folder / REPORT).unlink(missing_ok=True)
