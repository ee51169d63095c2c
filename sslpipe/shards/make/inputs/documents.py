"""Files of many documents: lines of JSON, plain or in gzip, and Parquet with a column of texts."""

from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

from ....errors import SampleError, ShardError
from ....recipe.names import suggest
from ..documents import lines_of, parquet_of, parsed, payload_of
from ..source import Note, Origin
from .found import Columns, Found, Options, read_label, safe_key
from .tables import GUESSES, LOOK, list_parquet

TEXT = "text"  # the column, unless named
Line = tuple[int, int, bytes]  # number, first byte, content


def list_documents(url: str, options: Options) -> Iterator[Found | Note]:
    """The lines of a `.jsonl` or `.jsonl.gz`, each an object with a text; empty ones are nothing.

    Raises:
        ShardError: documents are not what is packed, none of the first lines has a text, or the
            file is damaged.
    """
    check_text(url, options)
    names = options.columns
    yield from list_lines_of(url, names, ())


def list_rows_of(url: str, options: Options) -> Iterator[Found | Note]:
    """The rows of a Parquet file with a column of texts; of one without, `list_parquet`.

    Raises:
        ShardError: no Parquet, no such column, or none of the first rows has a text.
        ExtraError: pyarrow is missing.
    """
    wanted = options.columns
    with parquet_of(url) as table:
        names = list(table.schema_arrow.names)
    if wanted.text is not None and wanted.text not in names:
        raise ShardError(f"{url}: has no column {wanted.text!r}; {suggest(wanted.text, names)}")
    is_text = "txt" in options.extensions and wanted.path is None
    if is_text and wanted.text is None and not {TEXT, *GUESSES["path"]} & {*map(str.lower, names)}:
        there = suggest(TEXT, names)
        raise ShardError(f"{url}: no column {TEXT!r}; name it, --columns text=NAME. {there}")
    if wanted.text is None and not (is_text and TEXT in names):
        yield from list_parquet(url, options)
        return
    check_text(url, options)
    known = [wanted.text or TEXT, *columns_for("label", wanted), *columns_for("key", wanted)]
    yield from list_lines_of(url, wanted, tuple(name for name in known if name in names))


def check_text(url: str, options: Options) -> None:
    """Raise a ShardError where something else than documents is packed."""
    if "txt" not in options.extensions:
        raise ShardError(f"{url}: holds documents; pack them with --modality text")


def columns_for(role: str, wanted: Columns) -> tuple[str, ...]:
    """The names that a column for a role may have: the one that was named, or the usual ones."""
    named = {"label": wanted.label, "key": wanted.key}[role]
    return GUESSES[role] if named is None else (named,)


def list_lines_of(url: str, wanted: Columns, columns: tuple[str, ...]) -> Iterator[Found | Note]:
    """What the lines of a file offer; `columns` of a table are read.

    Raises:
        ShardError: none of the first ones has a text.
    """
    lines = (
        (number, start, line)
        for number, (start, line) in enumerate(lines_of(url, columns), 1)
        if line.strip()
    )
    first = list(islice(lines, LOOK))
    offers = [offer(url, line, wanted, columns) for line in first]
    if offers and all(isinstance(found, Note) for found in offers):
        (note, *_) = offers
        reason = note.reason if isinstance(note, Note) else ""
        raise ShardError(
            f"{url}: none of its first {len(offers)} documents can be used, e.g. number 1: "
            f"{reason} (--columns text=NAME)"
        )
    yield from chain(offers, (offer(url, line, wanted, columns) for line in lines))


def offer(url: str, line: Line, wanted: Columns, columns: tuple[str, ...]) -> Found | Note:
    """A document, or why a line is none."""
    number, start, content = line
    name = url.partition("?")[0].rpartition("/")[2]
    column = wanted.text or TEXT
    try:
        row = parsed(content)
        size = len(payload_of(row, column))
        label = label_of(row, wanted)
    except SampleError as error:
        return Note(f"{name}:{number}", str(error))
    place = Origin(url, span=(start, len(content)), column=column, columns=columns)
    key = next((row[n] for n in columns_for("key", wanted) if row.get(n) not in (None, "")), None)
    key = f"{name.partition('.')[0]}-{number:08d}" if key is None else str(key)
    return Found(place, f"{name}:{number}", safe_key(key), "txt", label, size)


def label_of(row: dict[str, Any], wanted: Columns) -> int | str | None:
    """The class of a document.

    Raises:
        SampleError: it is neither a number nor a name.
    """
    value = next((row[n] for n in columns_for("label", wanted) if n in row), None)
    if isinstance(value, list | dict):
        raise SampleError(f"its label {str(value)[:40]!r} is no number and no name; correct it")
    return read_label(value)
