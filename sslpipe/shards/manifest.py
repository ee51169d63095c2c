"""The manifest of a shard set: which tars, how many samples, what they hash to."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pydantic

from ..errors import ShardError
from .index import index_path, replace_file

FILE = "manifest.json"
FORMAT: Literal["sslpipe-shards"] = "sslpipe-shards"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar of the set."""

    file: str  # plain file name
    samples: pydantic.PositiveInt
    bytes: pydantic.PositiveInt
    sha256: str
    index_sha256: str
    url: str | None = None  # where the tar lies; None: beside the manifest


@dataclass(frozen=True)
class Manifest:
    """A shard set at `root`. Label i of a sample means `classes[i]`.

    `exclude`: shard file -> rows that are never streamed, ascending (bad samples, duplicates).
    """

    name: str
    root: Path
    classes: tuple[str, ...]
    shards: tuple[Shard, ...]
    seed: int  # of the shuffle before packing
    resize: int | None  # pixels of the shorter side; None: original bytes
    exclude: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """Samples in all shards, those that are excluded too."""
        return sum(shard.samples for shard in self.shards)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the content in its order, not of names or places."""
        digest = hashlib.blake2b(digest_size=16)
        for shard in self.shards:
            digest.update(f"{shard.samples} {shard.sha256}\n".encode())
            if rows := self.exclude.get(shard.file):
                digest.update(f"without {','.join(map(str, rows))}\n".encode())
        return "b2:" + digest.hexdigest()

    def tar(self, shard: Shard) -> Path:
        """Where a shard lies."""
        return self.root / shard.file

    def index(self, shard: Shard) -> Path:
        """Where the index of a shard lies."""
        return index_path(self.tar(shard))


class Document(pydantic.BaseModel):
    """The JSON file."""

    format: Literal["sslpipe-shards"]
    version: int
    name: str
    seed: int
    resize: int | None
    classes: list[str]
    shards: list[Shard]
    exclude: dict[str, list[int]] = {}


def open_manifest(path: str | Path) -> Manifest:
    """Read a manifest (the folder or its manifest.json) and look at the size of every shard.

    Indexes are not read: the cost does not depend on the number of samples.

    Raises:
        ShardError: as `read_manifest`; also a shard that is missing or of another size.
    """
    manifest = read_manifest(path)
    for shard in manifest.shards:
        fault = size_fault(manifest, shard)
        if fault:
            raise ShardError(f"{manifest.tar(shard)}: {fault}")
    return manifest


def size_fault(manifest: Manifest, shard: Shard) -> str | None:
    """What is wrong with the presence and size of a shard, and what to do; None if nothing."""
    tar = manifest.tar(shard)
    if not tar.is_file():
        return "is missing; pack again or copy it again"
    size = tar.stat().st_size
    if size != shard.bytes:
        return f"was cut or changed: {size:,} of {shard.bytes:,} bytes; pack again or copy it again"
    return None


def read_manifest(path: str | Path) -> Manifest:
    """Read a manifest without looking at its shards.

    Raises:
        ShardError: missing, not JSON, another format or version, empty, or unsafe file names.
    """
    file = Path(path) / FILE if Path(path).is_dir() else Path(path)
    document = parse_document(read_json(file), file)
    if not document.shards:
        raise ShardError(f"{file}: lists no shards; pack again")
    for shard in document.shards:
        check_plain(shard.file, file)
    return Manifest(
        name=document.name,
        root=file.parent,
        classes=tuple(document.classes),
        shards=tuple(document.shards),
        seed=document.seed,
        resize=document.resize,
        exclude=checked_exclude(document, file),
    )


def checked_exclude(document: Document, file: Path) -> dict[str, tuple[int, ...]]:
    """The excluded rows, which must be rows of shards that are listed.

    Raises:
        ShardError: an unknown shard, or a row that it does not have.
    """
    samples = {shard.file: shard.samples for shard in document.shards}
    for name, rows in document.exclude.items():
        if not set(rows) <= set(range(samples.get(name, 0))):
            raise ShardError(
                f"{file}: exclude.{name} = {rows}: the shard has rows 0 to "
                f"{samples.get(name, 0) - 1}; correct the list or remove it"
            )
    return {name: tuple(sorted(set(rows))) for name, rows in document.exclude.items() if rows}


def read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ShardError(
            f"{file}: no manifest; make one with `sslpipe pack FOLDER {file.parent}`, "
            "or run an interrupted pack again"
        ) from error
    except OSError as error:
        raise ShardError(f"{file}: cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:
        raise ShardError(f"{file}: is not JSON ({error}); pack again or copy it again") from error


def parse_document(data: Any, file: Path) -> Document:
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ShardError(f"{file}: is no shard manifest; give the folder that `sslpipe pack` made")
    if data.get("version") != VERSION:
        raise ShardError(
            f"{file}: manifest version {data.get('version')!r}, this sslpipe reads {VERSION}; "
            "pack again or install the sslpipe that wrote it"
        )
    try:
        return Document.model_validate(data)
    except pydantic.ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in fault["loc"])
        raise ShardError(f"{file}: {place}: {fault['msg'].lower()}; pack again") from None


def check_plain(name: str, where: Path) -> None:
    """A shard is a file beside the manifest, never a path out of its folder."""
    if name in ("", ".", "..") or set(name) & set("/\\:\0"):
        raise ShardError(f"{where}: {name!r} is no plain file name; pack again")


def write_manifest(manifest: Manifest) -> None:
    """Write `root/manifest.json` atomically."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "name": manifest.name,
        "seed": manifest.seed,
        "resize": manifest.resize,
        "classes": list(manifest.classes),
        "shards": [without_none(asdict(shard)) for shard in manifest.shards],
    }
    if manifest.exclude:
        document["exclude"] = {name: list(rows) for name, rows in manifest.exclude.items()}
    text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    replace_file(manifest.root / FILE, text.encode())


def without_none(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if value is not None}
