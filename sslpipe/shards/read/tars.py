"""From what a user types to tars: folders, globs, braces, local paths and anything of fsspec."""

import glob
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from braceexpand import braceexpand
from fsspec.implementations.local import LocalFileSystem

from ...errors import ShardError
from ...process import regular_file
from ..make.source import is_local
from ..tar_streams import CHUNK
from .file_systems import asking, find_store

REQUESTS = 32  # at once, when asking for sizes
AHEAD = 8 * CHUNK  # bytes of one request to a distant store
COMPRESSED = re.compile(r"\.(tgz|tar\.\w+)$", re.IGNORECASE)
QUERY = re.compile(r"[?#].*", re.DOTALL)
MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class Tar:
    """A tar to index: where it lies, and what its store tells of it."""

    url: str  # an absolute local path, or what fsspec opens
    file: str  # plain name, unique in the set
    bytes: int  # -1: the store does not tell
    modified: float  # seconds since 1970; 0: the store does not tell


def find_tars(urls: Iterable[str]) -> list[Tar]:
    """The tars that are meant, those of a glob or folder sorted.

    Raises:
        ShardError: nothing found, a missing local file, a compressed one, one that is named twice.
    """
    found = [tar for url in urls for one in braces(url) for tar in expand(one)]
    if not found:
        raise ShardError("no tars given; name files, folders, globs or URLs")
    for url in found:
        if COMPRESSED.search(url):
            raise ShardError(
                f"{url}: is compressed, which rules out reading at an offset; unpack it "
                "(gunzip, zstd -d): payloads hardly shrink by it anyway"
            )
    names = plain_names(found)
    with ThreadPoolExecutor(REQUESTS) as pool:
        facts = list(pool.map(size_and_time, found))
    return [Tar(url, name, *fact) for url, name, fact in zip(found, names, facts, strict=True)]


def braces(url: str) -> list[str]:
    """Expand `{000..123}` and `{a,b}`.

    Raises:
        ShardError: the braces do not close.
    """
    try:
        return list(braceexpand(url))
    except ValueError as error:
        raise ShardError(f"{url}: unbalanced braces; write {{000..123}} or {{a,b}}") from error


def expand(url: str) -> list[str]:
    """One URL as tars: the matches of a glob, the `*.tar` of a local folder, or itself.

    Raises:
        ShardError: there is no such tar, or the store cannot be asked.
    """
    files, path = find_store(url)
    local = isinstance(files, LocalFileSystem)
    if local and Path(path).is_dir():
        tars = sorted(files.glob(f"{glob.escape(path)}/*.tar"))
    elif has_pattern(url, path) and not (local and Path(path).exists()):
        with asking(url):
            tars = sorted(files.glob(path))
    else:
        tars = [path] if not local or Path(path).is_file() else []
    if not tars:
        raise ShardError(f"{url}: no such tar; check the path")
    return tars if local else [files.unstrip_protocol(tar) for tar in tars]


def has_pattern(url: str, path: str) -> bool:
    """Whether a path is a glob; signatures in the query of a URL may hold such letters too."""
    return bool(MAGIC.search(QUERY.sub("", path) if url.startswith(("http:", "https:")) else path))


def plain_names(urls: list[str]) -> list[str]:
    """A unique file name for each URL: its last part, with parts before it where names repeat.

    Raises:
        ShardError: a URL is named twice.
    """
    for url, count in Counter(urls).items():
        if count > 1:
            raise ShardError(f"{url}: is named {count} times; name each tar once")
    paths = [url if is_local(url) else re.sub(r"^\w+://|[?#].*$", "", url) for url in urls]
    parts = [PurePosixPath(path).parts for path in paths]
    names = [part[-1] for part in parts]
    for depth in range(2, max(map(len, parts)) + 1):
        repeated = {name for name, count in Counter(names).items() if count > 1}
        names = [
            "__".join(part[-depth:]) if name in repeated else name
            for name, part in zip(names, parts, strict=True)
        ]
    names = [re.sub(r"[/\\:\0]", "_", name) for name in names]
    if len(set(names)) < len(names):
        raise ShardError(f"{urls[0]} ...: the tars have no unique names; rename one of them")
    return names


def size_and_time(url: str) -> tuple[int, float]:
    """Bytes and time of change, as far as the store tells without reading."""
    files, path = find_store(url)
    try:
        info = files.info(path)
    except Exception:  # stores raise what they like; opening it will tell
        return -1, 0.0
    changed = info.get("mtime") or info.get("LastModified") or info.get("created") or 0.0
    return info.get("size") or -1, changed.timestamp() if isinstance(changed, datetime) else changed


def local_folder(tars: list[Tar]) -> Path:
    """The one local folder that all tars lie in.

    Raises:
        ShardError: there is none.
    """
    folders = {Path(tar.url).parent for tar in tars}
    if len(folders) > 1 or not is_local(tars[0].url):
        raise ShardError(
            f"{tars[0].url} ...: the tars do not lie in one local folder; "
            "name a folder for indexes and manifest with --out"
        )
    return folders.pop()


@contextmanager
def open_tar(url: str) -> Iterator[BinaryIO]:
    """A tar, to be read from its start; OSError."""
    if is_local(url):
        with regular_file(url).open("rb", buffering=CHUNK) as file:
            yield file
        return
    files, path = find_store(url)
    with files.open(path, "rb", block_size=AHEAD, cache_type="readahead") as file:
        yield cast(BinaryIO, file)
