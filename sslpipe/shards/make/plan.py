"""What packing decides before it does anything: settings, and which source goes into which shard.

    sources -> keyed shuffle -> expected payload sizes -> cut -> one job per shard

Nothing here depends on workers or on time, so a run can be cut short and gone on with.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from tarfile import LENGTH_NAME, RECORDSIZE, TarInfo
from typing import Literal, Protocol, get_args

from ...errors import ShardError
from ..index import BLOCK
from .source import Listing, Place, Source

Check = Literal["decode", "header"]
Dedupe = Literal["none", "exact", "near"]

LABEL = "cls"  # extension of the member that holds the class id
NAMES = "name.json"  # extension of the member that keeps the original name
KEYED_SAMPLE = 64  # sources; where sizes vary by half, the mean of so many is off by about 6 %
MAX_NEAR_BITS = 15  # of 64; beyond, photos of different things are taken for equal


class Codec(Protocol):
    """What packing knows of a modality. Picklable: it goes to the workers."""

    @property
    def extensions(self) -> frozenset[str]:
        """File extensions to pack: lower case, without dot."""

    @property
    def shrunk_extension(self) -> str:
        """Extension of what `shrink` makes."""

    @property
    def version(self) -> str:
        """Names the packages whose version may change a byte of what is packed."""

    def extension(self, data: bytes) -> str:
        """The extension that the content should have: lower case, without dot."""

    def header(self, data: bytes) -> tuple[int, int]:
        """Width and height, from the first bytes alone; SampleError with the reason."""

    def inspect(self, data: bytes) -> tuple[int, int]:
        """Decode everything and return (width, height); SampleError with the reason."""

    def shrink(self, data: bytes, *, side: int, quality: int) -> bytes:
        """Decode everything, re-encode with a shorter side of at most `side`; SampleError."""

    def perceptual_hash(self, data: bytes) -> int:
        """64 bits, of which similar pictures share most; SampleError with the reason."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything but the inputs that decides what is packed. See `pack` for the meaning."""

    codec: Codec
    name: str
    resize: int | None
    quality: int
    check: Check
    shard_bytes: int
    shard_samples: int | None
    seed: int
    dedupe: Dedupe
    near_bits: int
    keep_names: bool

    def __post_init__(self) -> None:
        for name, least in (
            ("resize", 1),
            ("quality", 1),
            ("shard_bytes", 1),
            ("shard_samples", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ShardError(f"{name} = {value}: must be {least} or more")
        for name, known in (("check", get_args(Check)), ("dedupe", get_args(Dedupe))):
            if getattr(self, name) not in known:
                raise ShardError(f"{name} = {getattr(self, name)!r}: use {' or '.join(known)}")
        if self.quality > 100:
            raise ShardError(f"quality = {self.quality}: must be 100 or less")
        if not 0 <= self.near_bits <= MAX_NEAR_BITS:
            raise ShardError(f"near_bits = {self.near_bits}: must be between 0 and {MAX_NEAR_BITS}")


@dataclass(frozen=True, slots=True)
class Job:
    """One shard to write, wherever that happens."""

    number: int
    sources: tuple[Source, ...]
    folder: str
    run: str  # names unfinished files apart from those of a run that was killed
    labelled: bool
    settings: Settings

    @property
    def file(self) -> str:
        """Plain name of the tar."""
        return f"{self.settings.name}-{self.number:06d}.tar"


def facts(listing: Listing, settings: Settings) -> dict[str, object]:
    """What must be the same for a run to go on with another's work, each under its name."""
    names = [name for name in Settings.__slots__ if name != "codec"]
    return {
        **{name: getattr(settings, name) for name in names},
        "versions": settings.codec.version,
        "files": len(listing.sources),
        "inputs": listing.fingerprint,
    }


def keyed_sample(ordered: Sequence[Source], settings: Settings) -> list[Source]:
    """The sources to encode in order to know what the others may take; none if sizes are known."""
    if settings.shard_samples is not None:
        return []
    unknown = (source for source in ordered if settings.resize is not None or not source.size)
    return [source for source, _ in zip(unknown, range(KEYED_SAMPLE), strict=False)]


def cut(ordered: Sequence[Source], settings: Settings, mean_bytes: int) -> list[tuple[Source, ...]]:
    """Consecutive groups of sources, one per shard.

    By count if `shard_samples` says so. Else each tar stays within `shard_bytes` if more than one
    sample is in it, as far as sizes are known; unknown ones count as `mean_bytes`.
    """
    if settings.shard_samples is not None:
        step = settings.shard_samples
        return [tuple(ordered[at : at + step]) for at in range(0, len(ordered), step)]
    groups: list[list[Source]] = []
    used = settings.shard_bytes
    for source in ordered:
        size = tar_bytes(source, settings, mean_bytes)
        if padded(used + size + 2 * BLOCK, RECORDSIZE) > settings.shard_bytes:  # end mark
            groups.append([])
            used = 0
        groups[-1].append(source)
        used += size
    return [tuple(group) for group in groups]


def tar_bytes(source: Source, settings: Settings, mean_bytes: int) -> int:
    """Bytes of a sample in a tar, at most: members and their headers with long names."""
    known = source.size and settings.resize is None
    members = {
        max(settings.codec.extensions, key=len): source.size if known else mean_bytes,
        LABEL: BLOCK,
        **{ext: member_bytes(what) for ext, what in source.extras},
    }
    if settings.keep_names:
        members[NAMES] = BLOCK + 6 * len(source.file)  # in JSON, one letter may take six
    return sum(
        header_bytes(f"{source.key}.{ext}") + padded(size, BLOCK) for ext, size in members.items()
    )


def member_bytes(what: bytes | Place) -> int:
    if isinstance(what, bytes):
        return len(what)
    return what.span[1] if what.span else BLOCK  # a caption, say


def header_bytes(name: str) -> int:
    if name.isascii() and len(name) <= LENGTH_NAME:
        return BLOCK  # tarfile's own answer, a hundred times as fast
    return len(TarInfo(name).tobuf())


def padded(size: int, unit: int) -> int:
    return -(-size // unit) * unit
