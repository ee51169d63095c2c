"""Documents that are lines of JSON or rows of a table: where each lies, and its text.

A line of `.jsonl` is read where it lies. gzip and Parquet have no way to one line, so each process
unrolls such a file once, as lines of JSON in an unnamed temporary file, for as long as it runs:
that costs the uncompressed bytes on disk for each process.
"""

import atexit
import gzip
import json
import os
import tempfile
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, cast

from ...errors import ExtraError, SampleError, ShardError
from ..side_files import parse_json
from .source import Origin, is_local, open_input, read

ROWS = 1024  # of a table that are converted at once
UNROLLING = threading.Lock()  # threads share what one of them has unrolled


def document_at(place: Origin) -> bytes:
    """The text at a place, as the payload that `payload_of` makes of it.

    Raises:
        OSError: it cannot be read.
        SampleError: there is no such text any more.
    """
    assert place.span is not None
    assert place.column is not None
    if is_plain(place.url):
        return payload_of(parsed(read(Origin(place.url, span=place.span))), place.column)
    file = unrolled_here(place.url, place.columns)
    line = os.pread(file.fileno(), place.span[1], place.span[0])
    return payload_of(parsed(line), place.column)


def is_plain(url: str) -> bool:
    """Whether a file has its lines where they can be read."""
    return url.partition("?")[0].lower().endswith(".jsonl")


def lines_of(url: str, columns: Sequence[str]) -> Iterator[tuple[int, bytes]]:
    """Each line of a file of documents, with its first byte.

    Raises:
        ShardError: it cannot be read, or is damaged.
        ExtraError: pyarrow is missing.
    """
    if is_plain(url):
        with open_input(url) as file:
            yield from counted(file)
        return
    unrolled = unrolled_here(url, tuple(columns))
    with os.fdopen(os.dup(unrolled.fileno()), "rb") as file:
        file.seek(0)
        yield from counted(file)


def counted(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Lines, each with its first byte."""
    start = 0
    for line in file:
        yield start, line
        start += len(line)


def unrolled_here(url: str, columns: tuple[str, ...]) -> BinaryIO:
    """The lines of a compressed file or a table, for this process."""
    with UNROLLING:
        local = is_local(url) and Path(url).exists()
        return unrolled(url, columns, Path(url).stat().st_mtime_ns if local else 0)


@cache
def unrolled(url: str, columns: tuple[str, ...], changed: int) -> BinaryIO:
    """The same, made; `changed`: when the file was.

    Raises:
        ShardError: it cannot be read, or is damaged.
        ExtraError: pyarrow is missing.
    """
    made = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 - below
    atexit.register(made.close)
    lines = table_lines(url, columns) if url.lower().endswith(".parquet") else inflated(url)
    made.writelines(lines)
    made.flush()
    return made


def inflated(url: str) -> Iterator[bytes]:
    """Pieces of what a gzip file holds.

    Raises:
        ShardError: it is none, or cut.
    """
    try:
        with open_input(url) as file, gzip.open(file) as lines:
            while piece := lines.read(2**20):
                yield piece
    except (EOFError, zlib.error, OSError) as error:
        raise ShardError(f"{url}: no gzip, or a damaged one ({error}); copy it again") from error


def table_lines(url: str, columns: Sequence[str]) -> Iterator[bytes]:
    """The rows of a Parquet file as lines of JSON, with some of its columns."""
    with parquet_of(url) as table:
        for row in parquet_rows(table, url, columns):
            yield json.dumps(row, default=in_words).encode() + b"\n"


def in_words(value: object) -> str:
    """What JSON does not know, as text; bytes that are no UTF-8 become signs that are none."""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


@contextmanager
def parquet_of(url: str) -> Iterator[Any]:
    """A Parquet file, open.

    Raises:
        ShardError: no Parquet.
        ExtraError: pyarrow is missing.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ExtraError(f"{url}: Parquet needs pyarrow; pip install sslpipe[tables]") from error
    with open_input(url) as file:
        try:
            table = parquet.ParquetFile(file)
        except (pyarrow.ArrowInvalid, OSError) as error:
            why = " ".join(str(error).split())
            raise ShardError(f"{url}: is no Parquet file ({why}); copy it again") from error
        yield table


def parquet_rows(
    table: Any, url: str, columns: Sequence[str] | None = None
) -> Iterator[dict[str, Any]]:
    """The rows of an open Parquet file, some thousands in memory at a time; None: all columns.

    Raises:
        ShardError: what is behind its header is damaged.
    """
    batches = table.iter_batches(batch_size=ROWS, columns=None if columns is None else [*columns])
    while True:
        try:
            batch = next(batches, None)
            rows = batch.to_pylist() if batch is not None else []
        except (OSError, ValueError) as error:  # Arrow's own errors are ValueErrors
            why = " ".join(str(error).split())
            raise ShardError(f"{url}: is a damaged Parquet file ({why}); copy it again") from error
        if batch is None:
            return
        yield from rows


def parsed(line: bytes) -> dict[str, Any]:
    """The object that a line is.

    Raises:
        SampleError: it is none.
    """
    try:
        found = parse_json(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise SampleError(f"byte {error.start} of the line is not UTF-8; convert it") from error
    except ValueError as error:
        raise SampleError(f"is no JSON ({error}); correct the line") from error
    if not isinstance(found, dict):
        raise SampleError(f"is no JSON object but {type(found).__name__}; write one a line")
    return found


def payload_of(row: dict[str, Any], column: str) -> bytes:
    """The text of a row, as it is packed: a JSON object where it could be taken for one itself.

    Raises:
        SampleError: it has none, or it is no Unicode.
    """
    text = row.get(column)
    if not isinstance(text, str):
        raise SampleError(f"has no {column!r} that is a text; leave it out, or name another column")
    try:
        data = text.encode()
    except UnicodeEncodeError as error:  # half of a pair of UTF-16, or bytes of another encoding
        raise SampleError(f"sign {error.start} of its text is no Unicode; correct it") from error
    if text.lstrip("\ufeff \t\r\n").startswith("{"):
        return json.dumps({"text": text}).encode()
    return data
