"""Small files beside tars and in runs: written whole or not at all, read as others left them.

What is no JSON any more is an error that says where, never a trace.
"""

import errno
import fcntl
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import ShardError, StateError
from ..process import regular_file

log = logging.getLogger(__name__)
# a disk that is full (of bytes, of a user's, of a file's size), read-only, or breaking
DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
OS_ERROR = re.compile(r"\(os error (\d+)\)")  # how libraries in Rust end their words


def parse_json(text: str | bytes) -> Any:
    """What a JSON document holds.

    Raises:
        ValueError: it is none, is nested deeper than Python's stack allows, or has a number of
            more digits than Python reads.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        if "set_int_max_str_digits" in str(error):  # Python's advice is for programs
            raise ValueError("it has a number of thousands of digits") from None
        raise
    except RecursionError:  # no subclass of ValueError, and as much the fault of the text
        raise ValueError("it is nested too deeply") from None


def other_format(found: object, known: int, remedy: str, *, kind: str = "format") -> str:
    """What to say of a file whose format is not `known`; of an older one, or of none, `remedy`."""
    if isinstance(found, int) and found > known:
        return f"written by a newer sslpipe ({kind} {found}, this one reads up to {known}); upgrade"
    return f"{kind} {found!r}, this sslpipe reads {known}; {remedy}"


def read_objects(path: Path, what: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and object of each line that is not empty.

    Lines end at line feeds alone: `splitlines` would cut texts that hold others, as U+2028.

    Raises:
        ShardError: the file cannot be read, or a line is no object; `what` it should be.
    """
    try:
        lines = regular_file(path).read_bytes().split(b"\n")
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


def replace_file(path: Path, content: bytes) -> None:
    """Write through `*.part`, so that a file of this name is always whole.

    Raises:
        OSError: the disk is full or the folder closed; it names the file, and nothing is left.
    """
    with written_whole(path) as part:
        part.write_bytes(content)


def disk_fault(error: BaseException) -> OSError | None:
    """What a disk refused, by the name of no file, behind an error that a library made of it.

    torch says `unexpected pos`, safetensors `I/O error: ... (os error 28)`.
    """
    found: BaseException | None = error
    while found is not None:
        told = OS_ERROR.search(str(found))
        number = found.errno if isinstance(found, OSError) else int(told[1]) if told else None
        if number in DISK_FAULTS:
            return OSError(number, os.strerror(number))
        found = found.__cause__ or found.__context__
    return None


@contextmanager
def held(folder: Path, doing: str, *, wait: bool = False) -> Iterator[None]:
    """Keep a folder to this process; `doing`: what it does there. It leaves no file behind.

    Of file systems that know no locks it keeps nothing.

    Raises:
        StateError: another process has it, and we do not `wait`.
    """
    number = os.open(folder, os.O_RDONLY)
    try:
        lock(number, folder, wait=wait)
        yield
    except BlockingIOError:
        raise StateError(
            f"{folder}: another process {doing} in this folder now; wait for its end, or choose "
            "another"
        ) from None
    finally:
        os.close(number)


def lock(number: int, path: Path, *, wait: bool = False) -> None:
    """Lock an open file or folder until it is closed.

    Raises:
        BlockingIOError: another process has it, and we do not `wait`; it names `path`.
    """
    try:
        fcntl.flock(number, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        words = "another process writes it now; wait for its end, or write elsewhere"
        raise BlockingIOError(errno.EWOULDBLOCK, words, str(path)) from None
    except OSError:
        log.debug("%s: cannot be locked", path)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have a fault of the disk name its file, which a write to an open one does not.

    Raises:
        OSError: the same, with the path.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


@contextmanager
def open_to_others(path: Path) -> Iterator[None]:
    """Have a file that a library writes in here closed to nobody but whom the umask closes it to.

    safetensors closes its files to all but their owner.
    """
    path.touch()
    mode = path.stat().st_mode
    yield
    path.chmod(mode)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """The place beside `path` to write to, which takes its name at the end; or nothing is left.

    Raises:
        OSError: as `replace_file`, whatever the library that writes makes of it.
        BlockingIOError: another process writes it now.
    """
    if path.exists() and not path.is_file():  # a pipe or /dev/stdout takes what comes
        yield path
        return
    part = path.with_name(path.name + ".part")
    try:
        with part.open("ab") as file:
            lock(file.fileno(), path)
            yield part
            part.replace(path)
    except BlockingIOError:  # it is the other's
        raise
    except OSError as error:
        part.unlink(missing_ok=True)
        if error.filename is None:  # a full disk has no name
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise
    except BaseException as error:
        part.unlink(missing_ok=True)
        if fault := disk_fault(error):
            raise OSError(fault.errno, fault.strerror, str(path)) from error
        raise
