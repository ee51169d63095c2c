"""From what a user names to single inputs: braces, globs, and the kind of each."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import braceexpand

from ....errors import ShardError
from ...read.file_systems import asking, find_store
from ..source import Note, is_local
from .archives import list_tar, list_zip
from .documents import list_documents, list_rows_of
from .folders import list_folder
from .found import Found, Options
from .tables import list_csv, list_lines

Reader = Callable[[str, Options], Iterator[Found | Note]]

READERS: dict[str, Reader] = {
    "txt": list_lines,
    "csv": list_csv,
    "tsv": list_csv,
    "parquet": list_rows_of,
    "jsonl": list_documents,
    "tar": list_tar,
    "zip": list_zip,
}
COMPRESSED = re.compile(r"\.(t[gbx]z|tar\.\w+|gz|bz2|xz|zst)$")


@dataclass(frozen=True, slots=True)
class Input:
    """One input: as the user named it, and where it lies (a URL or an absolute path)."""

    name: str
    url: str
    reader: Reader


def expand(names: Sequence[str | Path]) -> list[Input]:
    """Single inputs, in the order given.

    Raises:
        ShardError: one does not exist, matches nothing, or is of no known kind.
    """
    assert not isinstance(names, str), "a sequence of inputs, not one"
    single = [each for name in names for each in expand_name(os.fspath(name))]
    if not single:
        raise ShardError("inputs: there are none; name a folder, a list, a table or an archive")
    return [Input(name, absolute(name), choose_reader(name)) for name in single]


def expand_name(name: str) -> list[str]:
    """The names that braces and globs stand for; a file of this very name comes first.

    Raises:
        ShardError: braces do not close, or nothing matches.
    """
    name = name.removeprefix("file://")
    if is_local(name) and os.path.lexists(name):
        return [name]
    try:
        names = list(braceexpand.braceexpand(name)) if "{" in name else [name]
    except ValueError as error:
        raise ShardError(f"{name}: its braces do not close; write {{000000..000009}}") from error
    return [match for each in names for match in expand_glob(each)]


def expand_glob(name: str) -> list[str]:
    """The sorted matches of a name with `*`, `?` or `[`; `?` in http starts a query.

    Raises:
        ShardError: nothing matches, or the store cannot be asked.
    """
    if name.startswith(("http://", "https://")) or not re.search(r"[*?[]", name):
        return [name]
    store, path = find_store(name)
    with asking(name):
        matches = sorted(store.glob(path))
    if not matches:
        raise ShardError(f"{name}: matches nothing; check the pattern")
    if is_local(name):
        return [os.path.relpath(match) for match in matches]
    return [store.unstrip_protocol(match) for match in matches]


def absolute(name: str) -> str:
    """Working folders differ between machines: a path is made absolute, a URL is left alone."""
    return str(Path(name).absolute()) if is_local(name) else name


def choose_reader(name: str) -> Reader:
    """What lists an input.

    Raises:
        ShardError: it does not exist, is compressed, or is of no known kind.
    """
    if is_local(name) and Path(name).is_dir():
        return list_folder
    if is_local(name) and not Path(name).exists():
        raise ShardError(f"{name}: does not exist; check the path")
    path = name.partition("?")[0].lower()
    if path.endswith(".jsonl.gz"):
        return list_documents
    if COMPRESSED.search(path):
        raise ShardError(f"{name}: is compressed, which leaves no place to read from; unpack it")
    reader = READERS.get(path.rpartition("/")[2].rpartition(".")[2])
    if reader is None and is_local(name):
        known = ", ".join(f".{ext}" for ext in READERS)
        raise ShardError(f"{name}: is no folder and none of {known}; name one of these")
    return reader or list_folder
