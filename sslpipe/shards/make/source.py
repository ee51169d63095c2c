"""What can be packed: where the bytes of a sample lie, and what they become in a shard."""

import errno
import functools
import hashlib
import os
import re
import zipfile
from dataclasses import dataclass
from typing import BinaryIO, cast

from ...errors import ExtraError, ShardError
from ...process import regular_file
from ..read.download import Patience, persist
from ..read.file_systems import find_store

SCHEME = re.compile(r"[a-z][a-z0-9+.-]*(?:://|::)", re.IGNORECASE)
FEW = Patience(attempts=4)  # 3 s at most for a file: a store that is away has many
OPEN_ZIPS = 4  # per process; a directory of a million members takes about 0.5 GB

CLOSED = "cannot be listed"  # how the reason of a folder begins whose samples are lacking


@dataclass(frozen=True, slots=True, order=True)
class Note:
    """A file that is not in the shards, and why."""

    file: str  # as named by the input
    reason: str


@dataclass(frozen=True, slots=True)
class FrameRun:
    """The numbered pictures of one folder, which are the frames of a video; see frames.py."""

    prefix: str
    digits: int  # of a number, at least
    suffix: str
    first: int
    step: int
    count: int
    fps: float

    def name(self, number: int) -> str:
        """The name of the picture of a number."""
        return f"{self.prefix}{number:0{self.digits}d}{self.suffix}"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all, in their order."""
        stop = self.first + self.step * self.count
        return tuple(self.name(number) for number in range(self.first, stop, self.step))


@dataclass(frozen=True, slots=True)
class Origin:
    """Where bytes lie: a file, a member of a zip, a range of a plain tar, a document, or frames."""

    url: str  # a local path, or what fsspec opens
    member: str | None = None  # of a zip
    span: tuple[int, int] | None = None  # offset and bytes
    column: str | None = None  # of the line of JSON at `span` whose text it is; see documents.py
    columns: tuple[str, ...] = ()  # of a table that such lines are made of
    frames: FrameRun | None = None  # pictures whose names begin with `url`, or `member`, and "/"


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file to pack: where its bytes lie, and its key, label and extras."""

    place: Origin
    file: str  # as named by the input: relative to the folder, the row's path, the tar's member
    key: str
    ext: str  # lower case, no dot; as named, which the content may contradict; may be empty
    uid: int
    label: int  # -1: none
    size: int = 0  # bytes; 0: unknown before it is read
    extras: tuple[tuple[str, bytes | Origin], ...] = ()  # other members, by extension: txt, json


@dataclass(frozen=True)
class Listing:
    """What the inputs offer, sorted by key."""

    sources: tuple[InputFile, ...]
    skipped: tuple[Note, ...]
    classes: tuple[str, ...]
    labels: str = "none"  # how they were read, in a sentence

    @property
    def frame_rate(self) -> str:
        """What folders of frames are said to have, for the summary; empty: there are none."""
        rates = [s.place.frames.fps for s in self.sources if s.place.frames]
        return f"{rates[0]:g} per second, of {len(rates):,} folders of frames" if rates else ""

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of classes, keys, labels, sizes, places and extras; contents are not read."""
        digest = hashlib.blake2b(repr(self.classes).encode(), digest_size=16)
        for s in self.sources:
            place: tuple[object, ...] = (s.place.url, s.place.member, s.place.span)
            if s.place.column is not None:
                place = (*place, s.place.column, s.place.columns)
            if s.place.frames is not None:
                place = (*place, s.place.frames)
            # repr escapes what no encoding takes, and keeps fields apart
            line = repr((s.key, s.ext, s.label, s.size, place, s.extras))
            digest.update(line.encode("utf-8", "surrogatepass"))
        return "b2:" + digest.hexdigest()


def is_local(url: str) -> bool:
    """Whether `url` is a path of this machine, not a URL."""
    return SCHEME.match(url) is None


def open_file(url: str) -> BinaryIO:
    """Open a file, local or not, for reading and seeking.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    if is_local(url):
        return regular_file(url).open("rb")
    store, path = find_store(url)
    return cast(BinaryIO, store.open(path, "rb"))


def open_input(url: str) -> BinaryIO:
    """Open a list or an archive.

    Raises:
        ShardError: it cannot be read.
    """
    try:
        return open_file(url)
    except ExtraError:
        raise
    except Exception as error:  # each client raises its own kinds
        raise ShardError(f"{url}: cannot be read ({why(error)}); check it") from error


def read(place: Origin) -> bytes:
    """The bytes at a place. Safe in threads; picklable for processes and other machines.

    Raises:
        OSError: it cannot be read; `strerror` always says why.
        ExtraError: the client of its store is not installed.
    """
    try:
        if place.member is not None:
            return opened_zip(place.url, os.getpid()).read(place.member)
        data = read_local(place) if is_local(place.url) else read_store(place)
    except ExtraError:
        raise
    except Exception as error:  # each client and zip raises its own kinds
        raise OSError(code_of(error), why(error), place.url) from error
    if place.span and len(data) != place.span[1]:
        text = f"{len(data):,} of {place.span[1]:,} bytes; the file was changed, or takes no ranges"
        raise OSError(errno.EIO, text, place.url)
    return data


def read_local(place: Origin) -> bytes:
    """The bytes at a place on this machine."""
    if place.span is None:
        return regular_file(place.url).read_bytes()
    with regular_file(place.url).open("rb", buffering=0) as file:
        file.seek(place.span[0])
        return file.read(place.span[1])


def read_store(place: Origin) -> bytes:
    """The bytes at a place in a store, in one request; one that fails is tried again."""
    store, path = find_store(place.url)
    start, size = place.span or (None, 0)
    end = None if start is None else start + size
    request = functools.partial(store.cat_file, path, start=start, end=end)
    try:
        return bytes(persist(request, place.url, FEW))
    except ShardError as error:  # what the client said is told in fewer words
        raise error.__cause__ or error from None


@functools.lru_cache(maxsize=OPEN_ZIPS)
def opened_zip(url: str, process: int) -> zipfile.ZipFile:
    """An open zip: reading its directory for every member would be quadratic.

    ZipFile locks its file, so threads may share it; processes may not (a fork shares the file's
    position), hence `process`. One that falls out of the cache is closed with its last reader.
    """
    # given a path, it closes the file itself
    return zipfile.ZipFile(url if is_local(url) else open_file(url))


def code_of(error: Exception) -> int:
    """The errno of an error; fsspec's errors have the kind only, others are input/output errors."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    if isinstance(error, FileNotFoundError):
        return errno.ENOENT
    return errno.EACCES if isinstance(error, PermissionError) else errno.EIO


def why(error: Exception) -> str:
    """What an error of a file system, an HTTP client or a zip says, in a few words."""
    cause = error.__cause__
    client = type(cause).__module__.startswith("aiohttp")
    if client and isinstance(error, FileNotFoundError) and isinstance(cause, OSError):
        return why(cause)  # fsspec says "not found" also of a server that is away
    status = getattr(error, "status", None)
    if status is not None:  # aiohttp; its own text repeats the URL, signatures included
        return f"HTTP {status} {getattr(error, 'message', '')}".strip()
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, FileNotFoundError | PermissionError):  # fsspec's hold the path only
        return os.strerror(code_of(error))
    if isinstance(error, TimeoutError):
        return "timed out"
    return " ".join(str(error).split()) or type(error).__name__
