"""The manifest of a shard set: which tars, how many samples, what they hash to."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from ..errors import ShardError
from .index import other_version
from .read.download import Patience, is_url, local_path, on_this_machine, place_in, read_whole
from .side_files import parse_json, replace_file

FILE, VERSION = "manifest.json", 2
FORMAT: Literal["sslpipe-shards"] = "sslpipe-shards"
UNSAFE = frozenset("/\\:\0")  # in file names
LONGEST_NAME = 255 - len(".idx.part")  # bytes: what is written beside a tar has longer ones
LOOKED_AT = 16  # shards at most whose size is looked at when a set is opened
MISSING = "is missing; pack again or copy it again"
Positive = Annotated[int, pydantic.Field(strict=True, gt=0, lt=2**48)]  # what arrays can hold


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar of the set: its size, its samples and what it hashes to."""

    file: str  # plain file name
    samples: Positive
    bytes: Positive
    sha256: str
    index_sha256: str
    url: str | None = None  # where the tar lies, a URL or a path; None: beside the manifest


@dataclass(frozen=True)
class Manifest:
    """A shard set at `root`, a folder or a URL. Label i of a sample means `classes[i]`.

    `extent` and `flags` say what the numbers and bits of the indexes mean.
    `exclude`: shard file -> rows that are never streamed, ascending (bad samples, duplicates).
    `counted`: name of a number of an extent -> fingerprint of what it was counted by after packing;
    and the suffix of files beside the tars -> of what made them.
    """

    name: str
    root: Path | str
    modality: str  # whose codec wrote the indexes
    extent: tuple[str, ...]  # names of the numbers of an extent, in their order
    flags: Mapping[str, int]  # name -> bit
    classes: tuple[str, ...]
    shards: tuple[Shard, ...]
    seed: int  # of the shuffle before packing
    resize: int | None  # what payloads were shrunk to; None: original bytes
    exclude: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    counted: Mapping[str, str] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """Samples in all shards, those that are excluded too."""
        return sum(shard.samples for shard in self.shards)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the content in its order, not of names, places, or of what follows from it."""
        digest = hashlib.blake2b(digest_size=16)
        for shard in self.shards:
            digest.update(f"{shard.samples} {shard.sha256}\n".encode())
            if rows := self.exclude.get(shard.file):
                digest.update(f"without {','.join(map(str, rows))}\n".encode())
        return "b2:" + digest.hexdigest()

    @property
    def folder(self) -> Path:
        """The root on this machine; ShardError: it lies elsewhere."""
        return on_this_machine(self.root)

    def tar_place(self, shard: Shard) -> Path | str:
        """Where a tar lies: a path or a URL."""
        if shard.url is None:
            return place_in(self.root, shard.file)
        if is_url(shard.url) or isinstance(self.root, str):
            return shard.url
        return self.root / local_path(shard.url)

    def index_place(self, shard: Shard) -> Path | str:
        """Where the index of a shard lies: a path or a URL, always beside the manifest."""
        return place_in(self.root, shard.file + ".idx")

    def tar(self, shard: Shard) -> Path:
        """The path of a shard on this machine; ShardError: it lies elsewhere."""
        return on_this_machine(self.tar_place(shard))

    def index(self, shard: Shard) -> Path:
        """The path of an index on this machine; ShardError: it lies elsewhere."""
        return on_this_machine(self.index_place(shard))


class Document(pydantic.BaseModel):
    """The fields of manifest.json, as they stand in the file."""

    format: Literal["sslpipe-shards"]
    version: int
    name: str
    modality: str
    extent: list[str]
    flags: dict[str, Annotated[int, pydantic.Field(strict=True, gt=0, lt=2**32)]]
    seed: pydantic.StrictInt
    resize: Positive | None
    classes: list[str]
    shards: list[Shard]
    exclude: dict[str, list[pydantic.StrictInt]] = {}
    counted: dict[str, str] = {}


def open_manifest(path: str | Path) -> Manifest:
    """Read a manifest (folder, manifest.json, or fsspec URL of either) and look at a few shards.

    The first, the last and some between: a set that was moved or half copied is found at once.
    The rest is checked when a shard is first opened. The cost does not grow with the samples.

    Raises:
        ShardError: as `read_manifest`; also one of those shards is missing or of another size.
    """
    manifest = read_manifest(path)
    count = len(manifest.shards)
    for number in sorted({i * (count - 1) // (LOOKED_AT - 1) for i in range(LOOKED_AT)}):
        shard = manifest.shards[number]
        place = manifest.tar_place(shard)
        if not is_url(place) and (fault := size_fault(manifest, shard)):
            raise ShardError(f"{place}: {fault}")
    return manifest


def size_fault(manifest: Manifest, shard: Shard) -> str | None:
    """What is wrong with the presence and size of a shard, and what to do; None if nothing."""
    try:
        size = manifest.tar(shard).stat().st_size
    except OSError:
        return MISSING
    return cut_fault(size, shard)


def cut_fault(size: int, shard: Shard) -> str | None:
    """What is wrong with the size of a shard (bytes)."""
    if size != shard.bytes:
        return f"was cut or changed: {size:,} of {shard.bytes:,} bytes; pack again or copy it again"
    return None


def read_manifest(path: str | Path) -> Manifest:
    """Read a manifest without looking at its shards.

    Raises:
        ShardError: missing, not JSON, another format or version, empty, or unsafe file names.
    """
    root, file = root_and_file(path)
    return parse_manifest(read_document(path), root, file)


def read_document(path: str | Path) -> dict[str, Any]:
    """The JSON object of a manifest, of whatever version.

    Raises:
        ShardError: missing, not JSON, or another format.
    """
    root, file = root_and_file(path)
    data = read_json(file, root)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ShardError(f"{file}: is no shard manifest; give the folder that `sslpipe pack` made")
    return data


def parse_manifest(data: dict[str, Any], root: Path | str, file: Path | str) -> Manifest:
    """The manifest that a JSON object is; `file` is named in errors.

    Raises:
        ShardError: another version, empty, unsafe file names, or fields of other types.
    """
    if data.get("version") != VERSION:
        raise ShardError(f"{file}: manifest {other_version(data.get('version'), VERSION, root)}")
    document = parse_document(data, file)
    if not document.shards:
        raise ShardError(f"{file}: lists no shards; pack again")
    check_names([shard.file for shard in document.shards], file)
    return Manifest(
        name=document.name,
        root=root,
        modality=document.modality,
        extent=tuple(document.extent),
        flags=document.flags,
        classes=tuple(document.classes),
        shards=tuple(document.shards),
        seed=document.seed,
        resize=document.resize,
        exclude=checked_exclude(document, file),
        counted=document.counted,
    )


def root_and_file(path: str | Path) -> tuple[Path | str, Path | str]:
    """The folder and the file of a manifest that is named by either."""
    if is_url(path):
        root = str(path).removesuffix("/" + FILE).rstrip("/")
        return root, f"{root}/{FILE}"
    named = local_path(path)
    is_file = named.is_file() or named.suffix == ".json"
    file = named if is_file else named / FILE
    return file.parent, file


def checked_exclude(document: Document, file: Path | str) -> dict[str, tuple[int, ...]]:
    """The excluded rows, which must be rows of shards that are listed.

    Raises:
        ShardError: an unknown shard, or a row that it does not have.
    """
    samples = {shard.file: shard.samples for shard in document.shards}
    for name, rows in document.exclude.items():
        if rows and not 0 <= min(rows) <= max(rows) < samples.get(name, 0):
            raise ShardError(
                f"{file}: exclude.{name} = {rows}: the shard has rows 0 to "
                f"{samples.get(name, 0) - 1}; correct the list or remove it"
            )
    return {name: tuple(sorted(set(rows))) for name, rows in document.exclude.items() if rows}


def read_json(file: Path | str, folder: Path | str) -> Any:
    """What a JSON file holds.

    Raises:
        ShardError: it is missing, cannot be read, or is no JSON.
    """
    try:
        return parse_json(read_whole(file, Patience()).decode())
    except FileNotFoundError as error:
        how = f"make one with `sslpipe pack FOLDER {folder}`, or run an interrupted pack again"
        raise ShardError(f"{file}: no manifest; {how}") from error
    except OSError as error:
        raise ShardError(f"{file}: cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:
        raise ShardError(f"{file}: is not JSON ({error}); name a set, or pack it again") from error


def parse_document(data: dict[str, Any], file: Path | str) -> Document:
    """The fields of a manifest.

    Raises:
        ShardError: one is missing or of another type; names the first.
    """
    try:
        return Document.model_validate(data)
    except pydantic.ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in fault["loc"])
        raise ShardError(f"{file}: {place}: {fault['msg'].lower()}; pack again") from None


def check_names(names: list[str], where: Path | str) -> None:
    """Raise a ShardError unless each shard is a plain file beside the manifest, listed once."""
    for name in names:
        if name in ("", ".", "..") or not UNSAFE.isdisjoint(name) or not fits_a_folder(name):
            raise ShardError(f"{where}: {name!r} is no plain file name; pack again")
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise ShardError(f"{where}: lists {twice!r} twice; pack again")


def fits_a_folder(name: str) -> bool:
    """Whether file systems take it: they count bytes, and some take UTF-8 alone."""
    try:
        return len(name.encode()) <= LONGEST_NAME
    except UnicodeEncodeError:
        return False


def write_manifest(manifest: Manifest, file: str = FILE) -> None:
    """Write a manifest into its root, which is a folder, atomically."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "name": manifest.name,
        "modality": manifest.modality,
        "extent": list(manifest.extent),
        "flags": dict(manifest.flags),
        "seed": manifest.seed,
        "resize": manifest.resize,
        "classes": list(manifest.classes),
        "shards": [{k: v for k, v in asdict(s).items() if v is not None} for s in manifest.shards],
    }
    if manifest.exclude:
        document["exclude"] = {name: list(rows) for name, rows in manifest.exclude.items()}
    if manifest.counted:
        document["counted"] = dict(manifest.counted)
    text = json.dumps(document, indent=1, ensure_ascii=False)
    replace_file(local_path(manifest.root) / file, f"{text}\n".encode())
