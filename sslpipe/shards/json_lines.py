"""JSON that others may have changed: what is no JSON is an error that says where, never a trace."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import ShardError


def parse_json(text: str | bytes) -> Any:
    """What a JSON document holds.

    Raises:
        ValueError: it is none, or is nested deeper than Python's stack allows.
    """
    try:
        return json.loads(text)
    except RecursionError:  # no subclass of ValueError, and as much the fault of the text
        raise ValueError("it is nested too deeply") from None


def read_objects(path: Path, what: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and object of each line that is not empty.

    Lines end at line feeds alone: `splitlines` would cut texts that hold others, as U+2028.

    Raises:
        ShardError: the file cannot be read, or a line is no object; `what` it should be.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, parse_object(line, f"{path}:{number}", what)


def parse_object(line: bytes, where: str, what: str) -> dict[str, Any]:
    """A line that is an object.

    Raises:
        ShardError: it is something else.
    """
    try:
        found = parse_json(line.decode("utf-8"))
    except ValueError as error:
        raise ShardError(f"{where}: is no {what} ({error}); remove the line") from error
    if not isinstance(found, dict):
        raise ShardError(f"{where}: is no {what} (it is no object); remove the line")
    return found
