"""A new version of a manifest, without samples that turned out to be bad. No tar is touched."""

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ..errors import ShardError
from .manifest import FILE, Manifest, write_manifest
from .side_files import read_objects, written_whole
from .verification import Problem

Row = tuple[str, int]  # shard file, row in it
LINE = "line of a quarantine log"


def exclude_rows(
    manifest: Manifest, *, logs: Iterable[Path] = (), problems: Iterable[Problem] = ()
) -> Manifest:
    """Write a manifest that also excludes the rows of quarantine logs and of `verify`'s problems.

    It has a fingerprint of its own. The old one stays beside it as manifest-FINGERPRINT.json, for
    runs that began with it.

    Raises:
        ShardError: a log cannot be read, or names no row of these shards.
    """
    rows = {(shard, row) for shard, excluded in manifest.exclude.items() for row in excluded}
    rows |= {(problem.shard, problem.row) for problem in problems if problem.row is not None}
    for log in logs:
        rows |= logged_rows(manifest, log)
    exclude: dict[str, tuple[int, ...]] = {}
    for shard, row in sorted(rows):
        exclude[shard] = (*exclude.get(shard, ()), row)
    new = replace(manifest, exclude=exclude)
    if new.fingerprint != manifest.fingerprint:
        old = f"manifest-{manifest.fingerprint.removeprefix('b2:')[:8]}.json"
        with written_whole(manifest.folder / old) as part:
            shutil.copyfile(manifest.folder / FILE, part)
        write_manifest(new)
    return new


def logged_rows(manifest: Manifest, log: Path) -> set[Row]:
    """The rows in a quarantine log that are of this manifest; a mixture's log has others too.

    Raises:
        ShardError: the log cannot be read, or has no row of this manifest.
    """
    samples = {shard.file: shard.samples for shard in manifest.shards}
    rows = set()
    for number, record in read_objects(log, LINE):
        try:
            manifest_of, shard, row = record["manifest"], record["shard"], record["row"]
            if manifest_of == manifest.fingerprint and 0 <= row < samples.get(shard, 0):
                rows.add((shard, int(row)))
        except (KeyError, TypeError) as error:
            raise ShardError(f"{log}:{number}: is no {LINE} ({error}); remove the line") from error
    if not rows:
        raise ShardError(
            f"{log}: names no row of {manifest.root} in this version ({manifest.fingerprint}); "
            "give the manifest that the run was started with"
        )
    return rows
