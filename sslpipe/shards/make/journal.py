"""The folder `.pack` inside `out`: what an unfinished packing has decided and finished so far.

    plan.json        inputs and settings; a run with others does not go on
    mean-000000.json hash-000000.json shard-000012.json ...   what jobs came to

Only the process that hands out the jobs writes here. `plan.json` is made first and removed first.
"""

import json
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ShardError
from ..manifest import FILE, read_document
from ..side_files import replace_file

FOLDER = ".pack"
PLAN = "plan.json"
REPORT = "report.jsonl"
AGAIN = "then run the same command again: it goes on where it stopped"


@dataclass(frozen=True, slots=True)
class Journal:
    """Records of finished jobs of one packing; `inputs` are those of its inputs that lie here."""

    folder: Path
    inputs: tuple[Path, ...] = ()

    def load(self, kind: str, number: int) -> Any:
        """A record; None if there is none, or a damaged one."""
        try:
            return unsealed(self.file(kind, number).read_bytes())
        except (FileNotFoundError, ValueError):
            return None

    def check_inputs(self) -> None:
        """Find out whether the inputs are still there, before what a job came to is believed.

        Of a disk that was unmounted, an empty folder is left, and no file of it can be read.

        Raises:
            ShardError: one was removed, or emptied.
        """
        for place in self.inputs:
            if not place.exists() or (place.is_dir() and not any(place.iterdir())):
                raise ShardError(
                    f"{place}: went away meanwhile; bring it back (mount it?), {AGAIN}"
                )

    def save(self, kind: str, number: int, record: object) -> None:
        """Write the record of a job, whole or not at all."""
        replace_file(self.file(kind, number), sealed(record))

    def file(self, kind: str, number: int) -> Path:
        """Where the record of a job lies."""
        return self.folder / f"{kind}-{number:06d}.json"

    def remove(self) -> None:
        """End the packing: from the first step on, it counts as finished."""
        (self.folder / PLAN).unlink()
        shutil.rmtree(self.folder)


def open_journal(out: Path, facts: Mapping[str, object], *, overwrite: bool) -> Journal:
    """Begin a packing in `out`, or go on with the one there if its facts are the same.

    `overwrite`: remove first what any other packing made there, and nothing else.

    Raises:
        ShardError: `out` holds a finished packing, one of other facts, or files in our way.
    """
    name = str(facts["name"])
    journal = Journal(out / FOLDER)
    before = read_plan(journal)
    if overwrite and before != facts:
        remove_packing(out, {name, *names_of(out, before)})
        before = None
    if before is None:
        check_free(out, name)
        journal.folder.mkdir(parents=True, exist_ok=True)
        replace_file(journal.folder / PLAN, sealed(facts))
    elif before != facts:
        raise ShardError(
            f"{out}: holds an unfinished packing of other inputs or settings "
            f"({differences(before, facts)}); repeat that command to finish it, name a new folder, "
            "or start over with --overwrite"
        )
    remove_files(out, re.escape(name) + r"-\d{6,}\.tar\.[0-9a-f]{8}\.part(\.idx(\.part)?)?")
    return journal


def read_plan(journal: Journal) -> Any:
    """What an unfinished packing has decided; None without one, {} if the file is damaged."""
    try:
        return unsealed((journal.folder / PLAN).read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}


def sealed(record: object) -> bytes:
    """A record as JSON and, in a second line, its CRC-32: a changed one must not decide."""
    text = json.dumps(record).encode()
    return text + f"\n{zlib.crc32(text):08x}\n".encode()


def unsealed(data: bytes) -> Any:
    """The record that was sealed.

    Raises:
        ValueError: it was cut or changed.
    """
    text, _, crc = data.partition(b"\n")
    if crc != f"{zlib.crc32(text):08x}\n".encode():
        raise ValueError("the record was cut or changed")
    return json.loads(text)


def differences(before: Mapping[str, object], now: Mapping[str, object]) -> str:
    """`resize: 256 there, 384 now`, for all that differs."""
    return ", ".join(
        f"{key}: {before.get(key)} there, {now.get(key)} now"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    )


def check_free(out: Path, name: str) -> None:
    """Refuse a folder with a finished packing, or with files that carry our names.

    Raises:
        ShardError: it is not free.
    """
    if (out / FILE).exists():
        shutil.rmtree(out / FOLDER, ignore_errors=True)  # killed while it removed it
        raise ShardError(
            f"{out}: already holds packed shards; remove them, name a new folder, "
            "or replace them with --overwrite"
        )
    for path in matching(out, shard_files(name)):
        raise ShardError(
            f"{path}: is in the way, and no packing here tells of it; remove it, name a new "
            "folder, or replace all of its kind with --overwrite"
        )


def names_of(out: Path, plan: Mapping[str, object] | None) -> Iterator[str]:
    """The names under which shards were packed into this folder."""
    if plan and "name" in plan:
        yield str(plan["name"])
    if (out / FILE).exists():
        yield str(read_document(out).get("name"))


def remove_packing(out: Path, names: set[str]) -> None:
    """Remove what packings under these names made, and nothing else."""
    (out / FILE).unlink(missing_ok=True)  # first: without it nobody takes the rest for whole
    (out / REPORT).unlink(missing_ok=True)
    for name in names:
        remove_files(out, shard_files(name))
    shutil.rmtree(out / FOLDER, ignore_errors=True)


def shard_files(name: str) -> str:
    """A pattern for the tars and indexes of a name."""
    return re.escape(name) + r"-\d{6,}\.tar(\.idx)?"


def matching(out: Path, pattern: str) -> list[Path]:
    """The files of a folder whose names match a pattern, sorted."""
    found = out.iterdir() if out.is_dir() else ()
    return sorted(path for path in found if re.fullmatch(pattern, path.name))


def remove_files(out: Path, pattern: str) -> None:
    """Remove the files whose names match a pattern."""
    for path in matching(out, pattern):
        path.unlink(missing_ok=True)


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Say of what the disk refuses how to go on.

    Raises:
        ShardError: instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        where = error.filename or out
        raise ShardError(
            f"{where}: {error.strerror or error}; make room and see that {out} can be written, "
            f"{AGAIN}"
        ) from error
