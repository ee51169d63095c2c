"""Tars by webdataset's rule, and zips, which are folder trees in one file. Nothing is extracted."""

import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

from ....errors import ShardError
from ...manifest import FILE, parse_manifest, read_document
from ...scan import LABEL, META, read_members
from ...tar_headers import escaped, split_name
from ...tar_streams import Skim
from ..source import Note, Origin, is_local, open_input
from .found import TEXTS, UNSAFE, Found, Options, offered, read_label, safe_key, split_file

Parts = dict[str, tarfile.TarInfo]  # extension -> member


def list_tar(url: str, options: Options) -> Iterator[Found | Note]:
    """The samples of a plain tar: members that share a name up to the first dot of its last part.

    The payload is the first member with a payload's extension, `.cls` the class (number or name),
    texts are kept. A tar of a packed set takes the class names of the manifest beside it.

    Raises:
        ShardError: no plain tar, or a cut or damaged one.
    """
    names = class_names(url)
    with open_input(url) as file:
        groups: dict[str, Parts] = {}
        yield from group_members(read_members(Skim(file), url), groups, options)
        for key, parts in groups.items():
            yield from sample_of(url, file, key, parts, names, options)


def group_members(
    members: Iterable[tarfile.TarInfo], groups: dict[str, Parts], options: Options
) -> Iterator[Note]:
    """Fill `groups` (key -> members), telling of what belongs to no sample."""
    for member in members:
        name = split_name(member.name)
        if member.isdir() or META.match(member.name):
            continue
        if name is None:
            hidden = member.name.rpartition("/")[2].startswith(".")
            yield Note(member.name, "hidden file" if hidden else "no extension of a payload")
        elif not member.isreg() or member.issparse():
            yield Note(member.name, "is no regular file")
        elif name[1].lower() in groups.setdefault(name[0], {}):
            yield Note(member.name, f"a second {name[1].lower()!r} of this key")
        else:
            groups[name[0]][name[1].lower()] = member


def sample_of(
    url: str, file: BinaryIO, key: str, parts: Parts, names: Mapping[int, str], options: Options
) -> Iterator[Found | Note]:
    """The sample that a group of members makes."""
    payload = next((e for e in parts if e.rpartition(".")[2] in options.extensions), None)
    texts = [e for e in parts if e.rpartition(".")[2] in TEXTS] if payload else []
    used = {payload, LABEL, *texts} if payload else set()
    for ext, member in parts.items():
        if ext not in used:
            second = payload and ext.rpartition(".")[2] in options.extensions
            reason = "a second payload of this key" if second else "no extension of a payload"
            yield Note(member.name, reason)
    if payload is None:
        return
    chosen = parts[payload]
    extras = tuple((UNSAFE.sub("_", escaped(ext)), place_of(url, parts[ext])) for ext in texts)
    label = class_of(file, parts.get(LABEL), names)
    ext = payload.rpartition(".")[2]
    place = place_of(url, chosen)
    yield Found(place, chosen.name, safe_key(key), ext, label, chosen.size, extras)


def place_of(url: str, member: tarfile.TarInfo) -> Origin:
    """Where the bytes of a member of a tar lie."""
    return Origin(url, span=(member.offset_data, member.size))


def class_of(
    file: BinaryIO, member: tarfile.TarInfo | None, names: Mapping[int, str]
) -> int | str | None:
    """The class in a `.cls` member: its name where the manifest knows it, else as written."""
    if member is None:
        return None
    file.seek(member.offset_data)
    label = read_label(file.read(member.size))
    return names.get(label, label) if isinstance(label, int) else label


def class_names(url: str) -> Mapping[int, str]:
    """Class number -> name by the manifest beside a local tar, if it is one of that set."""
    path = Path(url)
    manifest = path.parent / FILE
    if not is_local(url) or not manifest.is_file():
        return {}
    files, classes = known_set(manifest, manifest.stat().st_mtime_ns)
    return dict(enumerate(classes)) if path.name in files else {}


@lru_cache(maxsize=1)  # sets have thousands of tars and one manifest
def known_set(manifest: Path, changed: int) -> tuple[frozenset[str], tuple[str, ...]]:
    """Shard files and classes of a manifest; nothing if it is none of ours.

    Raises:
        ShardError: it is one of ours, and damaged or of another version.
    """
    try:
        data = read_document(manifest)
    except ShardError:
        return frozenset(), ()
    known = parse_manifest(data, manifest.parent, manifest)
    return frozenset(shard.file for shard in known.shards), known.classes


def list_zip(url: str, options: Options) -> Iterator[Found | Note]:
    """The files of a zip, as a folder tree; one folder around folders is left out.

    Raises:
        ShardError: no zip, or a damaged one.
    """
    try:
        with open_input(url) as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError) as error:
        raise ShardError(f"{url}: no zip, or a damaged one ({error}); copy it again") from error
    files: dict[str, zipfile.ZipInfo] = {}
    yield from fill_tree(members, files)
    top = outer_folder(files)
    paths = sorted((path.removeprefix(top).rpartition("/"), path) for path in files)
    for here, group in groupby(paths, key=lambda item: item[0][0]):
        inside = {parts[2]: files[path] for parts, path in group}
        sizes = {name: member.file_size for name, member in inside.items()}

        def place(name: str, inside: dict[str, zipfile.ZipInfo] = inside) -> Origin:
            return Origin(url, member=inside[name].filename)

        yield from offered(here, sizes, place, options)


def fill_tree(
    members: Iterable[zipfile.ZipInfo], files: dict[str, zipfile.ZipInfo]
) -> Iterator[Note]:
    """Fill `files` (path -> member) with what is no folder and not hidden; tell of the encrypted.

    Paths are cleaned: they hold no backslash, no `..` and nothing twice.
    """
    for member in members:
        name = member.filename.replace("\\", "/")  # tools of Windows write it
        path = "/".join(p for p in name.split("/") if p not in ("", ".", ".."))
        if member.flag_bits & 1:
            yield Note(member.filename, "is encrypted")
        elif not name.endswith("/") and not is_hidden(path.rpartition("/")[0]):
            files[free_path(path, member, files)] = member


def free_path(path: str, member: zipfile.ZipInfo, files: Mapping[str, zipfile.ZipInfo]) -> str:
    """The path of a member of a zip, unlike all others; of equal names the last counts."""
    stem, ext = split_file(path)
    number, free = 1, path
    while free in files and files[free].filename != member.filename:
        number += 1
        free = f"{stem}_{number}" + (f".{ext}" if ext else "")
    return free


def is_hidden(folder: str) -> bool:
    """Whether a folder of an archive is hidden, or holds what macOS adds."""
    return any(part.startswith(".") or part == "__MACOSX" for part in folder.split("/"))


def outer_folder(paths: Iterable[str]) -> str:
    """`photos/` where every file lies in `photos/`, and some in folders below it; else empty."""
    firsts = {path.partition("/")[0] + "/" if "/" in path else "" for path in paths}
    deep = any(path.count("/") > 1 for path in paths)
    return firsts.pop() if len(firsts) == 1 and deep else ""
