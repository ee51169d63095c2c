"""Lists of paths and tables with a column of paths: text, CSV, TSV and Parquet."""

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

from ....errors import ShardError
from ....recipe.names import suggest
from ...read.file_systems import find_store
from ..documents import parquet_of, parquet_rows
from ..source import SCHEME, Note, Origin, is_local, open_input
from .found import Columns, Found, Options, read_label, safe_key, split_file

GUESSES = {  # looked for in this order, in any case
    "path": ("path", "file", "filename", "url", "image"),
    "label": ("label", "class"),
    "caption": ("caption", "text"),
    "key": ("key",),
}
LOOK = 8  # first entries, of which one must exist
FIELD = 2**20  # characters; captions are long, and a quote that is never closed takes all

Row = Mapping[str, Any]


def list_lines(url: str, options: Options) -> Iterator[Found | Note]:
    """A text file with one path or URL per line, relative to its folder; empty lines are nothing.

    Raises:
        ShardError: none of its first entries exists.
    """
    base = url.rpartition("/")[0]
    with reading(url) as lines:
        entries = (line.strip("\r\n") for line in lines)
        for entry in checked((e for e in entries if e.strip()), base, url):
            yield Note(entry, "hidden file") if is_hidden(entry) else found_at(entry, base)


def list_csv(url: str, options: Options) -> Iterator[Found | Note]:
    """A CSV or TSV file with a header. Blanks around names and before fields are nothing.

    Raises:
        ShardError: no such column, or none of its first entries exists.
    """
    delimiter = "\t" if url.lower().endswith(".tsv") else ","
    with reading(url) as lines:
        csv.field_size_limit(max(FIELD, csv.field_size_limit()))
        reader = csv.DictReader(lines, delimiter=delimiter, skipinitialspace=True)
        try:
            reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            columns = choose_columns(options.columns, reader.fieldnames, url)
            yield from list_rows(reader, columns, url)
        except csv.Error as error:
            place = f"{url}:{reader.line_num}"
            raise ShardError(f"{place}: is no CSV ({error}); correct the line") from error


def list_parquet(url: str, options: Options) -> Iterator[Found | Note]:
    """A Parquet file.

    Raises:
        ShardError: no Parquet, no such column, or none of its first entries exists.
        ExtraError: pyarrow is missing.
    """
    with parquet_of(url) as table:
        columns = choose_columns(options.columns, table.schema_arrow.names, url)
        yield from list_rows(parquet_rows(table, url), columns, url)


def reading(url: str) -> io.TextIOWrapper:
    """The text of a file; bytes in no encoding survive, since paths may hold them."""
    return io.TextIOWrapper(open_input(url), "utf-8-sig", "surrogateescape", newline="")


def choose_columns(wanted: Columns, names: Sequence[str], url: str) -> dict[str, str]:
    """Role (path, label, caption, key) -> column, by name or by `GUESSES`.

    Raises:
        ShardError: a named column does not exist or stands twice, or none holds paths.
    """
    if any("\0" in name for name in names):
        raise ShardError(f"{url}: is no UTF-8 (UTF-16, perhaps); save it as UTF-8")
    chosen: dict[str, str] = {}
    folded = {name.lower(): name for name in reversed(names)}
    for role, guesses in GUESSES.items():
        name = getattr(wanted, role)
        if name is not None and name not in names:
            raise ShardError(f"{url}: has no column {name!r}; {suggest(name, names)}")
        guessed = next((folded[guess] for guess in guesses if guess in folded), None)
        if column := name or guessed:
            chosen[role] = column
    if "path" not in chosen:
        known = suggest("path", names)
        raise ShardError(f"{url}: no column of paths; name it, --columns path=NAME. {known}")
    for name in chosen.values():
        if names.count(name) > 1:
            raise ShardError(f"{url}: has {names.count(name)} columns {name!r}; rename all but one")
    return chosen


def list_rows(rows: Iterable[Row], columns: Mapping[str, str], url: str) -> Iterator[Found | Note]:
    """What the rows of a table name; rows without a path are told by their number.

    Raises:
        ShardError: no path among the first is there, or the column holds something else than text.
    """
    base, column = url.rpartition("/")[0], columns["path"]
    first = list(islice(rows := iter(rows), LOOK))
    entries = (row[column] for row in first if isinstance(row[column], str) and row[column])
    for _ in checked(entries, base, url):
        pass
    for number, row in enumerate(chain(first, rows), 1):
        entry = row[column]
        if None in row:
            yield Note(f"row {number}", "has more fields than the header")
        elif entry is None or entry == "":
            yield Note(f"row {number}", f"has no {column}")
        elif not isinstance(entry, str):
            kind = type(entry).__name__
            raise ShardError(f"{url}: column {column!r} holds {kind}, not paths; name another")
        else:
            yield Note(entry, "hidden file") if is_hidden(entry) else found_in(row, base, columns)


def checked(entries: Iterator[str], base: str, url: str) -> Iterator[str]:
    """The entries, if one of the first `LOOK` exists.

    Raises:
        ShardError: none does.
    """
    first = list(islice(entries, LOOK))
    if first and not any(exists(place_of(entry, base)) for entry in first):
        raise ShardError(
            f"{url}: none of its first {len(first)} entries exists, e.g. {first[0]!r}; "
            f"paths are relative to {base}"
        )
    return chain(first, entries)


def exists(place: Origin) -> bool:
    """Whether something lies at a place, as far as can be seen."""
    if is_local(place.url):
        return os.path.lexists(place.url)
    store, path = find_store(place.url)
    try:
        return bool(store.exists(path))
    except Exception:  # whatever a client raises: it cannot be seen
        return False


def place_of(entry: str, base: str) -> Origin:
    """Where an entry lies; `base`: folder of the list."""
    beside = is_local(entry) and not entry.startswith("/")
    return Origin(f"{base}/{entry}" if beside else entry)


def is_hidden(entry: str) -> bool:
    """Whether the name of a file begins with a dot."""
    return entry.rpartition("/")[2].startswith(".")


def found_at(entry: str, base: str) -> Found:
    """A path or URL; its key depends on nothing else, and holds no scheme and no query."""
    path = entry.removeprefix(base + "/")
    if not is_local(path):
        path = SCHEME.split(path.partition("?")[0])[-1]
    stem, ext = split_file(path)
    return Found(place_of(entry, base), entry, safe_key(stem), ext)


def found_in(row: Row, base: str, columns: Mapping[str, str]) -> Found:
    """A row: its label, its caption as `.txt`, and further columns as `.json`."""
    plain = found_at(row[columns["path"]], base)
    label = read_label(row[columns["label"]]) if "label" in columns else None
    caption = row[columns["caption"]] if "caption" in columns else None
    key = row[columns["key"]] if "key" in columns else None
    rest = {name: row[name] for name in row if name not in columns.values()}
    rest = {name: value for name, value in rest.items() if value not in (None, "")}
    extras: list[tuple[str, bytes | Origin]] = []
    if rest:
        text = json.dumps(rest, ensure_ascii=False, default=str)
        extras.append(("json", text.encode("utf-8", "replace")))
    if caption:  # several of one file, as Parquet may hold them, are lines
        lines = caption if isinstance(caption, list) else [caption]
        extras.append(("txt", "\n".join(map(str, lines)).encode("utf-8", "replace")))
    key = plain.key if key in (None, "") else safe_key(str(key))
    return Found(plain.place, plain.file, key, plain.ext, label, 0, tuple(extras))
