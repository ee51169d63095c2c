"""What every kind of input yields: files with a wished key and label, or notes."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ....errors import ShardError
from ...scan import whole_number
from ...tar_headers import escaped
from ..frames import film_bytes, origin_of, run_of
from ..source import FrameRun, Note, Origin

AN_INPUT = "holds samples of its own; name it as an input"
TEXTS = frozenset({"txt", "json", "caption"})  # kept beside a payload of the same name
# control characters break headers and line-based tools; lone surrogates are names in no encoding
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
MISSING = frozenset({"nan", "<na>"})  # as pandas and NumPy write what is not there
PADDED = re.compile("[+-]?0[0-9]")  # 007 is a name
FILM, FRAMES = "avi", "frames"  # what folders of frames become; one that has no name
# files that are inputs themselves; a folder offers files that are a sample each
INPUT = re.compile(r"\.(jsonl|jsonl\.gz|parquet|tar|zip)$", re.IGNORECASE)
METADATA = re.compile("^__+")  # `__name__` is not a sample for webdataset


@dataclass(frozen=True, slots=True)
class Found:
    """A file that an input offers."""

    place: Origin
    file: str  # as named by the input
    key: str  # safe, not yet unique
    ext: str
    label: int | str | None = None  # class number or class name
    size: int = 0
    extras: tuple[tuple[str, bytes | Origin], ...] = ()


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns of a table; None: the first of `tables.GUESSES` that it has."""

    path: str | None = None
    label: str | None = None
    caption: str | None = None
    key: str | None = None
    text: str | None = None  # of documents; None: documents.TEXT


@dataclass(frozen=True, slots=True)
class Options:
    """What the kinds of inputs need to know."""

    extensions: frozenset[str]  # of payloads: lower case, no dot
    away: str  # path or URL of a folder to leave out: the shards
    columns: Columns
    fps: float  # of folders of frames


def split_file(name: str) -> tuple[str, str]:
    """Stem and extension of a file name; a leading dot starts none (`.a` -> `.a`, ``)."""
    stem, _, ext = name.rpartition(".")
    return (name, "") if "/" in ext or not stem or stem.endswith("/") else (stem, ext.lower())


def safe_key(stem: str) -> str:
    """A path without extension, such that webdataset reads it back whole.

    Dots in the base name would end the key, `__` starts metadata, `..` leaves the folder.
    """
    parts = [part for part in UNSAFE.sub("_", stem).split("/") if part not in ("", ".")] or ["_"]
    parts[:-1] = [part.replace("..", "_") for part in parts[:-1]]
    parts[-1] = parts[-1].replace(".", "_")
    return "/".join(METADATA.sub("_", part) for part in parts)


def read_label(value: Any) -> int | str | None:
    """A class number, a class name, or None: empty, NaN or <NA> (pandas' missing ones) or -1.

    The one rule for what tables and `.cls` hold: blanks around it are nothing, and 2, 2.0, "2" and
    "2.0" are a number; digits after a needless zero are a name.
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if value is None or value != value:
        return None
    text, number = str(value).strip(), whole_number(value)
    if text.lower() in MISSING:
        return None
    if number is not None and not PADDED.match(text):
        return None if number == -1 else number
    return UNSAFE.sub("_", escaped(text)) or None


def offered(
    here: str, sizes: Mapping[str, int], place: Callable[[str], Origin], options: Options
) -> Iterator[Found | Note]:
    """What the files of one folder offer: payloads, with the texts of the same stem beside them.

    Where videos are packed, and there is none, its numbered pictures are one together.
    `here`: the folder, relative to the input; its first part is the class.

    Raises:
        ShardError: pictures of several names or numberings.
    """
    prefix = f"{here}/" if here else ""
    label = escaped(here.partition("/")[0]) or None
    names = {name: split_file(name) for name in sorted(sizes)}
    payloads = {n: s for n, (s, ext) in names.items() if ext in options.extensions and n[0] != "."}
    texts: dict[str, dict[str, bytes | Origin]] = {stem: {} for stem in payloads.values()}
    run = None if payloads or FILM not in options.extensions else run_of(names, here, options.fps)
    if run is not None:
        yield film_of(here, run, sizes, place)
    frames = frozenset(run.names if run else ())
    for name, (stem, ext) in names.items():
        if name in payloads or name in frames:
            continue
        if name[0] == ".":
            yield Note(prefix + name, "hidden file")
        elif ext in TEXTS and stem in texts and ext not in texts[stem]:
            texts[stem][ext] = place(name)
        else:
            yield Note(
                prefix + name, AN_INPUT if INPUT.search(name) else "no extension of a payload"
            )
    for name, stem in payloads.items():
        key, extras = safe_key(prefix + stem), tuple(texts[stem].items())
        yield Found(place(name), prefix + name, key, names[name][1], label, sizes[name], extras)


def film_of(
    here: str, run: FrameRun, sizes: Mapping[str, int], place: Callable[[str], Origin]
) -> Found:
    """The frames of a folder as one sample; the first folder above it is the class."""
    above, _, _ = here.rpartition("/")
    label = escaped(above.partition("/")[0]) or None
    key = safe_key(here or run.prefix.rstrip("_-. ") or FRAMES)
    return Found(origin_of(run, place), here or FRAMES, key, FILM, label, film_bytes(run, sizes))


def parse_columns(text: str) -> Columns:
    """`path=file,label=class` as Columns.

    Raises:
        ShardError: something else, or an unknown or repeated name.
    """
    pairs = [part.partition("=") for part in text.split(",") if part]
    names = {name.strip(): column.strip() for name, _, column in pairs}
    known = Columns.__slots__
    if len(names) < len(pairs) or not all(names.values()) or not set(names) <= set(known):
        form = ",".join(f"{name}=COLUMN" for name in known)
        raise ShardError(f"--columns {text!r}: write {form}")
    return Columns(**names)
