"""What can be packed: where the bytes of a sample lie, and what they become in a shard."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, order=True)
class Note:
    """A file that is not in the shards, and why."""

    file: str  # as named by the input
    reason: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where bytes lie: a file, a member of a zip, or a range of an uncompressed tar."""

    url: str  # a local path, or what fsspec opens
    member: str | None = None  # of a zip
    span: tuple[int, int] | None = None  # offset and bytes


@dataclass(frozen=True, slots=True)
class Source:
    """A file to pack."""

    place: Place
    file: str  # as named by the input: relative to the folder, the row's path, the tar's member
    key: str
    ext: str  # lower case, no dot
    uid: int
    label: int  # -1: none
    size: int = 0  # bytes; 0: unknown before it is read
    extras: tuple[tuple[str, bytes | Place], ...] = ()  # other members, by extension: txt, json


@dataclass(frozen=True, slots=True)
class Listing:
    """What the inputs offer, sorted by key."""

    sources: tuple[Source, ...]
    skipped: tuple[Note, ...]
    classes: tuple[str, ...]


def read(place: Place) -> bytes:
    """The bytes at a place.

    Raises:
        OSError: it cannot be read.
    """
    return Path(place.url).read_bytes()
