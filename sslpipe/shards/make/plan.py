"""What packing decides before it does anything: settings, and which source goes into which shard.

    sources -> keyed shuffle -> expected payload sizes -> cut -> one job per shard

Nothing here depends on workers or on time, so a run can be cut short and gone on with.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from tarfile import LENGTH_NAME, RECORDSIZE, TarInfo
from typing import Literal, get_args

from ...errors import ShardError
from ..codec import Codec
from ..scan import LABEL
from ..tar_headers import BLOCK
from .inputs.found import Columns
from .source import InputFile, Listing, Origin

Check = Literal["decode", "header"]
Dedupe = Literal["none", "exact", "near"]

NAMES = "name.json"  # extension of the member that keeps the original name
KEYED_SAMPLE = 64  # sources; where sizes vary by half, the mean of so many is off by about 6 %
MIN_FPS, MAX_FPS = 0.01, 100_000.0
MAX_NEAR_BITS = 15  # of 64; beyond, different things are taken for equal


@dataclass(frozen=True, slots=True, kw_only=True)
class PackSettings:
    """Everything but the inputs that decides what is packed.

    codec: of the modality. name: prefix of the shards; "": the first input's name.
    resize: what payloads are shrunk to, in the codec's measure, never enlarged, and encoded anew
    with `quality`; None keeps the original bytes. check: "decode" every original, or look at its
    "header" alone.
    shard_bytes: the most that a tar of several samples takes where sizes are known, else about
    that. shard_samples takes its place. seed: of the shuffle.
    columns: of tables. labels: a file of labels by key, which go before those of the inputs.
    keep_names: original names in `.name.json` members.
    dedupe: drop all but the first by key of "exact"ly equal files, or of "near" ones: perceptual
    hashes that differ in at most `near_bits`. fps: of folders of frames; None: frames.FPS.

    Raises:
        ShardError: a value that makes no sense.
    """

    codec: Codec
    name: str = ""
    resize: int | None = None
    quality: int = 90
    check: Check = "decode"
    shard_bytes: int = 64 * 2**20
    shard_samples: int | None = None
    seed: int = 0
    columns: Columns = Columns()  # noqa: RUF009 - frozen
    labels: Path | None = None
    dedupe: Dedupe = "none"
    near_bits: int = 4
    keep_names: bool = False
    fps: float | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        for name in ("resize", "quality", "shard_bytes", "shard_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ShardError(f"{name} = {value}: must be 1 or more")
        for name, known in (("check", get_args(Check)), ("dedupe", get_args(Dedupe))):
            if getattr(self, name) not in known:
                raise ShardError(f"{name} = {getattr(self, name)!r}: use {' or '.join(known)}")
        if self.quality > 100:
            raise ShardError(f"quality = {self.quality}: must be 100 or less")
        if not 0 <= self.near_bits <= MAX_NEAR_BITS:
            raise ShardError(f"near_bits = {self.near_bits}: must be between 0 and {MAX_NEAR_BITS}")
        if self.fps is not None and not MIN_FPS <= self.fps <= MAX_FPS:
            raise ShardError(f"--fps {self.fps:g}: must be between {MIN_FPS} and {MAX_FPS:,.0f}")
        self.check_options()

    def check_options(self) -> None:
        """Raise a ShardError for an option that makes no sense for what is packed."""
        asked = {
            f"--resize {self.resize}": self.resize is not None,
            "--dedupe near": self.dedupe == "near",
            f"--fps {self.fps or 0:g}": self.fps is not None,
        }
        for option, is_asked in asked.items():
            for refused, reason in self.codec.refused_options.items():
                if is_asked and option.startswith(refused):
                    raise ShardError(f"{option}: {reason}")


LONGEST = 200  # bytes of a name: `-000000.tar.01234567.part.idx.part` follows it


def check_name(name: str) -> None:
    """Refuse what cannot be the prefix of file names; "" stands for a name that is found later.

    Raises:
        ShardError: it holds a slash, say, or is too long.
    """
    if not re.fullmatch(r"(\w[\w.-]*)?", name):
        raise ShardError(f"name {name!r}: use letters, digits, dots and dashes only")
    if len(name.encode()) > LONGEST:
        raise ShardError(f"name {name!r}: use at most {LONGEST} bytes, for file names have limits")


@dataclass(frozen=True, slots=True)
class ShardJob:
    """One shard to write, wherever that happens."""

    number: int
    sources: tuple[InputFile, ...]
    folder: str
    run: str  # names unfinished files apart from those of a run that was killed
    labelled: bool
    settings: PackSettings

    @property
    def file(self) -> str:
        """The name of the tar, without a folder: NAME-000000.tar."""
        return f"{self.settings.name}-{self.number:06d}.tar"


def pack_facts(listing: Listing, settings: PackSettings) -> dict[str, object]:
    """What must be the same for a run to go on with another's work, each under its name."""
    names = {field.name for field in fields(settings)} - {"codec", "columns", "labels"}
    return {
        **{name: getattr(settings, name) for name in sorted(names)},
        "versions": settings.codec.version,
        "files": len(listing.sources),
        "inputs": listing.fingerprint,
    }


def keyed_sample(ordered: Sequence[InputFile], settings: PackSettings) -> list[InputFile]:
    """The sources to encode in order to know what the others may take; none if sizes are known."""
    if settings.shard_samples is not None:
        return []
    unknown = (source for source in ordered if settings.resize is not None or not source.size)
    return [source for source, _ in zip(unknown, range(KEYED_SAMPLE), strict=False)]


def cut_into_shards(
    ordered: Sequence[InputFile], settings: PackSettings, mean_bytes: int
) -> list[tuple[InputFile, ...]]:
    """Consecutive groups of sources, one per shard.

    By count if `shard_samples` says so. Else each tar stays within `shard_bytes` if more than one
    sample is in it, as far as sizes are known; unknown ones count as `mean_bytes`.
    """
    if settings.shard_samples is not None:
        step = settings.shard_samples
        return [tuple(ordered[at : at + step]) for at in range(0, len(ordered), step)]
    groups: list[list[InputFile]] = []
    used = settings.shard_bytes
    for source in ordered:
        size = tar_bytes(source, settings, mean_bytes)
        if padded(used + size + 2 * BLOCK, RECORDSIZE) > settings.shard_bytes:  # end mark
            groups.append([])
            used = 0
        groups[-1].append(source)
        used += size
    return [tuple(group) for group in groups]


def tar_bytes(source: InputFile, settings: PackSettings, mean_bytes: int) -> int:
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


def member_bytes(what: bytes | Origin) -> int:
    """Bytes of an extra member, or a guess where only reading it would tell."""
    if isinstance(what, bytes):
        return len(what)
    return what.span[1] if what.span else BLOCK  # a caption, say


def header_bytes(name: str) -> int:
    """Bytes of the tar header of a member, long names included."""
    if name.isascii() and len(name) <= LENGTH_NAME:
        return BLOCK  # tarfile's own answer, a hundred times as fast
    return len(TarInfo(name).tobuf())


def padded(size: int, unit: int) -> int:
    """A size rounded up to whole units."""
    return -(-size // unit) * unit
