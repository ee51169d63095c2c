"""Bytes from any fsspec URL (`s3://`, `gs://`, `https://`, `memory://` ...), against all odds.

A request that fails is tried again, later and later; a download goes on from the bytes that it
has. What cannot mend itself (no such file, no permission) is an error at once.
"""

import hashlib
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ...errors import ShardError
from ...process import regular_file
from .file_systems import find_store

BLOCK = 16 << 20  # bytes per request: what a dropped connection loses at most
RETRIED = {408, 429}  # HTTP states of the 400s that may pass
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Patience:
    """The budget of failures: attempts in a row without a new byte, and seconds between them."""

    attempts: int = 8
    first: float = 0.5  # doubled after every failure
    longest: float = 30.0

    def wait(self, failures: int) -> None:
        """Sleep: exponential backoff, with jitter so that a hundred ranks do not knock at once."""
        jitter = random.Random(os.urandom(8)).uniform(0.5, 1.0)  # noqa: S311  its own generator
        time.sleep(jitter * min(self.longest, self.first * 2 ** (failures - 1)))


def is_url(place: str | Path) -> bool:
    """Whether it is `protocol://...`, not a local path."""
    return "://" in str(place) and not str(place).startswith("file://")


def local_path(place: str | Path) -> Path:
    """A local path, or `file://...`, as a Path."""
    return Path(str(place).removeprefix("file://"))


def place_in(root: Path | str, file: str) -> Path | str:
    """A file in the folder of a manifest."""
    return f"{root}/{file}" if isinstance(root, str) else root / file


def on_this_machine(place: Path | str) -> Path:
    """The place as a path.

    Raises:
        ShardError: it is a URL.
    """
    if isinstance(place, str) and is_url(place):
        raise ShardError(f"{place}: is not on this machine; copy the set to a folder first")
    return local_path(place)


def read_whole(place: str | Path, patience: Patience) -> bytes:
    """All bytes of a small file.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be opened here, or is no regular file.
        ShardError: it cannot be read elsewhere.
    """
    if not is_url(place):
        return regular_file(local_path(place)).read_bytes()
    fs, path = find_store(str(place))
    return persist(lambda: bytes(fs.cat_file(path)), str(place), patience)


def read_range(url: str, start: int, end: int, patience: Patience) -> bytes:
    """Bytes [start, end) of a file; fewer where the file or the answer ends early, never none.

    A server that does not know ranges answers with the whole file.

    Raises:
        FileNotFoundError, ShardError: as `read_whole`.
    """
    fs, path = find_store(url)

    def request() -> bytes:
        block = bytes(fs.cat_file(path, start=start, end=end))
        if not block:
            raise EOFError(f"no bytes at {start:,}")
        return block

    return persist(request, url, patience)


def download(url: str, size: int, write: Callable[[bytes], Any], patience: Patience) -> str:
    """Write a file of `size` bytes block by block; return its SHA-256, taken on the way.

    Raises:
        FileNotFoundError, ShardError: as `read_whole`.
        OSError: of `write`.
    """
    digest, done = hashlib.sha256(), 0
    while done < size:
        end = min(done + BLOCK, size)
        block = read_range(url, done, end, patience)
        if len(block) > end - done:  # the whole file: no ranges here
            block = block[done:size]
        write(block)
        digest.update(block)
        done += len(block)
    return digest.hexdigest()


def persist(request: Callable[[], T], url: str, patience: Patience) -> T:
    """The result of a request, tried until the budget of failures is spent.

    Raises:
        FileNotFoundError: there is no such file.
        ShardError: the budget is spent, or trying again is useless.
    """
    for failures in range(1, patience.attempts + 1):
        try:
            return request()
        except FileNotFoundError:
            raise
        except Exception as error:  # every backend has exceptions of its own
            last = error
            if is_final(error):
                break
        if failures < patience.attempts:
            patience.wait(failures)
    raise ShardError(
        f"{url}: cannot be read: {failures} attempts, the last: {type(last).__name__}: {last}; "
        "check the address, the credentials and the server, then start again"
    ) from last


def is_final(error: Exception) -> bool:
    """Whether trying again is useless: refused by permission or as a request."""
    status = getattr(error, "status", 0)
    return isinstance(error, PermissionError) or (400 <= status < 500 and status not in RETRIED)
