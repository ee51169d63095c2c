"""The node cache: tars of distant shards in a folder that all processes of a node share.

    ab/<blake2b of URL and SHA-256>.tar                         a whole, checked tar
    ab/<...>.tar.part-<host>-<pid>-<random>                     one that is on its way
    ab/<...>.lock, room.lock                                    flocks; gone when not held

A tar is fetched once per node, under a lock, and hashed on the way. Whoever reads it holds a
shared flock on it: its lease, which ends with the file descriptor, hence with the process.
Eviction takes tars without a lease, the one that was needed the longest ago first, and touches
nothing but names of the form above.
"""

import fcntl
import hashlib
import logging
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ShardError
from .download import Patience, download

log = logging.getLogger(__name__)
TAR = re.compile(r"([0-9a-f]{2})[0-9a-f]{30}\.tar")
PART = re.compile(TAR.pattern + r"\.part-.+-\d+-[0-9a-f]{8}")
STALE = 24 * 3600.0  # seconds after which a part that nobody writes to is rubbish
ROOM_WAIT = 60.0  # seconds to wait for a lease to end, where there is no room otherwise
FREE_SHARE = 0.9  # of the free disk is the budget where none is given


@dataclass(frozen=True, slots=True)
class Distant:
    """A tar somewhere else, and what its bytes must be."""

    url: str
    bytes: int
    sha256: str

    @property
    def name(self) -> str:
        """Its file name in any cache: of the place and the content."""
        words = f"{self.url}\n{self.sha256}".encode()
        return hashlib.blake2b(words, digest_size=16).hexdigest() + ".tar"


@dataclass(frozen=True, slots=True)
class CachedTar:
    """A tar that the cache holds, or a part of one on its way."""

    path: Path
    bytes: int
    needed: float  # when it was last needed: seconds since 1970

    @property
    def whole(self) -> bool:
        """A tar, not a part of one."""
        return self.path.suffix == ".tar"

    @property
    def made_here(self) -> bool:
        """A part that a process of this host writes, or wrote before it died."""
        return f".part-{socket.gethostname()}-" in self.path.name


class NodeCache:
    """`fetch(tar)` -> a file descriptor with a lease; never more than `budget` bytes on the disk.

    Raises:
        ShardError: the folder cannot be made.
    """

    def __init__(self, folder: Path, *, budget: int | None, patience: Patience) -> None:
        self.folder, self._patience = folder, patience
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder / "room.lock"):
                remove_stale(folder)
        except OSError as error:
            raise ShardError(
                f"{folder}: cannot be a cache ({error.strerror}); set run.cache to a folder of a "
                "local disk"
            ) from error
        self.budget = free_budget(folder) if budget is None else budget

    def fetch(self, tar: Distant) -> int:
        """A descriptor of the cached tar that holds a lease; downloads what is not there.

        Raises:
            ShardError: it cannot be had, is not the tar of the manifest, or finds no room.
        """
        path = self.folder / tar.name[:2] / tar.name
        try:
            lease = take_lease(path)
            if lease is not None:
                return lease
            path.parent.mkdir(parents=True, exist_ok=True)
            with locked(path.with_suffix(".lock")):
                lease = take_lease(path)  # another process had it in hand
                return self._download(tar, path) if lease is None else lease
        except OSError as error:
            raise ShardError(
                f"{self.folder}: cannot take the {tar.bytes:,} bytes of {tar.url} "
                f"({error.strerror}); free some space, lower run.cache_gb or choose another "
                "run.cache"
            ) from error

    def _download(self, tar: Distant, path: Path) -> int:
        """Fetch into a part, check it, and give it its name. The lease begins before the name."""
        part, lease = self._reserve(tar, path)
        try:
            with os.fdopen(os.dup(lease), "wb") as file:
                check_content(tar, received(tar, file.write, self._patience))
            part.replace(path)
        except BaseException:
            os.close(lease)
            part.unlink(missing_ok=True)
            raise
        log.debug("fetched %s", tar.url)
        return lease

    def _reserve(self, tar: Distant, path: Path) -> tuple[Path, int]:
        """An empty part that already counts as whole, in a budget that holds it."""
        part = path.with_name(
            f"{path.name}.part-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        )
        give_up = time.monotonic() + ROOM_WAIT
        while True:
            with locked(self.folder / "room.lock"):
                used = self._make_room(tar.bytes)
                if used + tar.bytes <= self.budget:
                    return part, new_part(part, tar.bytes)
            if time.monotonic() > give_up:
                raise ShardError(
                    f"{self.folder}: no room for {tar.bytes:,} bytes of {tar.url}: running "
                    f"processes need {used:,} of {self.budget:,} bytes; raise run.cache_gb, or "
                    "give each run a folder of its own"
                )
            time.sleep(0.2)

    def _make_room(self, size: int) -> int:
        """Evict until `size` more bytes fit, or nothing is left to evict; the bytes in use.

        A part without a lease is of a process that died; other hosts' leases may not be seen here.
        """
        found = list(entries(self.folder))
        used = sum(entry.bytes for entry in found)
        for entry in sorted(found, key=lambda entry: entry.needed):
            if used + size <= self.budget:
                break
            if (entry.whole or entry.made_here) and evict(entry.path):
                used -= entry.bytes
        return used


def entries(folder: Path) -> Iterator[CachedTar]:
    """The files that a cache made, told by their names."""
    for path in folder.glob("[0-9a-f][0-9a-f]/*.tar*"):
        match = TAR.fullmatch(path.name) or PART.fullmatch(path.name)
        if match and match[1] == path.parent.name:
            with suppress(FileNotFoundError):  # another process was faster
                state = path.stat()
                yield CachedTar(path, state.st_size, state.st_mtime)


def remove_stale(folder: Path) -> None:
    """Remove parts of downloads that died more than a day ago."""
    for entry in entries(folder):
        if not entry.whole and time.time() - entry.needed > STALE:
            entry.path.unlink(missing_ok=True)


def free_budget(folder: Path) -> int:
    """Most of what is free, and what the cache holds already."""
    held = sum(entry.bytes for entry in entries(folder))
    return int(FREE_SHARE * (shutil.disk_usage(folder).free + held))


def take_lease(path: Path) -> int | None:
    """Open a cached tar and keep it from eviction; None: it is not there."""
    try:
        lease = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    fcntl.flock(lease, fcntl.LOCK_SH)
    if os.fstat(lease).st_nlink == 0:  # evicted between the two calls
        os.close(lease)
        return None
    with suppress(PermissionError):  # another user's file: its order of eviction stays as it is
        os.utime(path)
    return lease


def new_part(part: Path, size: int) -> int:
    """Make a leased part that counts `size` bytes in every budget, but takes no disk yet."""
    lease = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        fcntl.flock(lease, fcntl.LOCK_SH)
        os.ftruncate(lease, size)
    except OSError:
        os.close(lease)
        part.unlink()
        raise
    return lease


def evict(path: Path) -> bool:
    """Delete a cached tar or part, unless somebody holds a lease on it."""
    try:
        file = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_at(file, path):
            path.unlink()
            return True
    except BlockingIOError:
        pass
    finally:
        os.close(file)
    return False


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive flock on a file that exists only meanwhile."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(file, fcntl.LOCK_EX)
        if is_at(file, path):
            break
        os.close(file)  # the holder before us has removed it: others lock a new one
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(file)


def is_at(file: int, path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def received(tar: Distant, write: Callable[[bytes], Any], patience: Patience) -> str:
    """Download a tar; its SHA-256.

    Raises:
        ShardError: it is missing, or cannot be read.
    """
    try:
        return download(tar.url, tar.bytes, write, patience)
    except FileNotFoundError as error:
        raise ShardError(f"{tar.url}: is missing; pack again or copy it again") from error


def check_content(tar: Distant, sha256: str) -> None:
    """Raise a ShardError unless a download is the tar of the manifest, by its SHA-256."""
    if sha256 != tar.sha256:
        raise ShardError(
            f"{tar.url}: is not the tar of the manifest (SHA-256 {sha256[:12]}..., expected "
            f"{tar.sha256[:12]}...): changed, or of another set; upload it or pack again"
        )
