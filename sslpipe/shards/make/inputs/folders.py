"""Folder trees, on this machine or in a store: first-level folders are the classes."""

import os
from collections.abc import Iterator
from itertools import groupby

from ....errors import ShardError
from ...read.file_systems import find_store
from ..source import CLOSED, Note, Origin, is_local, why
from .found import Found, Options, offered

Folder = tuple[str, dict[str, int]]  # path below the root, file name -> bytes


def list_folder(root: str, options: Options) -> Iterator[Found | Note]:
    """The files of a tree; hidden folders and the shards' own are left out.

    Raises:
        ShardError: the root cannot be listed.
    """
    walk = walk_local if is_local(root) else walk_store
    for item in walk(root, options.away):
        if isinstance(item, Note):
            yield item
            continue
        here, sizes = item
        inside = f"{root.rstrip('/')}/{here}".rstrip("/")

        def place(name: str, inside: str = inside) -> Origin:
            return Origin(f"{inside}/{name}")

        yield from offered(here, sizes, place, options)


def walk_local(root: str, away: str) -> Iterator[Folder | Note]:
    """Every folder below `root`; links are followed, but not into a folder they lie in.

    Only links are resolved: resolving each folder would take longer than listing it.

    Raises:
        ShardError: `root` itself cannot be listed; folders in it that cannot are noted.
    """
    away = os.path.realpath(away)
    pending = [("", os.path.realpath(root))]
    while pending:
        here, real = pending.pop()
        try:
            folders, sizes, odd = scan(f"{root}/{here}")
        except OSError as error:
            if not here:
                raise ShardError(f"{root}: cannot be listed ({why(error)}); check it") from error
            yield Note(here, f"{CLOSED}: {why(error)}")
            continue
        prefix = f"{here}/" if here else ""
        yield from (Note(prefix + name, "is no regular file") for name in odd)
        yield here, sizes
        for entry in folders:
            below = os.path.realpath(entry.path) if entry.is_symlink() else f"{real}/{entry.name}"
            if below != away and not lies_in(real, below):
                pending.append((prefix + entry.name, below))


def scan(folder: str) -> tuple[list[os.DirEntry[str]], dict[str, int], list[str]]:
    """Folders that are not hidden, files with their bytes, and what is neither."""
    folders, sizes, odd = [], {}, []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_file():
                sizes[entry.name] = entry.stat().st_size
            elif entry.is_dir():
                if not entry.name.startswith("."):
                    folders.append(entry)
            elif entry.is_symlink():  # to nothing: reading it will say so
                sizes[entry.name] = 0
            else:
                odd.append(entry.name)  # a pipe would block whoever reads it
    return folders, sizes, odd


def lies_in(folder: str, other: str) -> bool:
    """Whether a folder is another one, or lies below it."""
    return folder == other or folder.startswith(other.rstrip("/") + "/")


def walk_store(root: str, away: str) -> Iterator[Folder | Note]:
    """Every folder below a URL, from one flat listing: the fewest requests.

    Raises:
        ShardError: the URL cannot be listed, or is a file.
    """
    store, top = find_store(root)
    top = top.rstrip("/")
    out = "" if is_local(away) else find_store(away)[1].rstrip("/")
    try:
        found = store.find(top, detail=True)
        store.invalidate_cache()  # it would keep a million entries, and know nothing newer
    except Exception as error:  # each client raises its own kinds
        raise ShardError(f"{root}: cannot be listed ({why(error)}); check the URL") from error
    if top in found:
        raise ShardError(f"{root}: is a file of unknown kind; name a folder, a list or an archive")
    files = sorted(
        (name[len(top) :].lstrip("/").rpartition("/"), int(info.get("size") or 0))
        for name, info in found.items()
        if not name.endswith("/") and not (out and lies_in(name, out))
    )
    for here, group in groupby(files, key=lambda file: file[0][0]):
        if not any(part.startswith(".") for part in here.split("/")):
            yield here, {path[2]: size for path, size in group}
