"""What a folder offers for packing: files, safe unique keys, ids, classes, shuffled order."""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from ..errors import ShardError
from ..rng import sample_id, words
from .source import Listing, Note, Place, Source

# control characters break headers and line-based tools; lone surrogates are names in no encoding
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def list_sources(folder: Path, out: Path, extensions: Collection[str]) -> Listing:
    """Find the files to pack under `folder`, leaving out `out` and hidden folders.

    Raises:
        ShardError: no file has one of `extensions`.
    """
    files = sorted(path.relative_to(folder).as_posix() for path in walk(folder, out))
    reasons = {file: why_skipped(file, extensions) for file in files}
    chosen = [file for file in files if not reasons[file]]
    if not chosen:
        looked = ", ".join(f".{ext}" for ext in sorted(extensions))
        raise ShardError(f"{folder}: holds no images (looked for {looked}); check the path")
    classes = tuple(sorted({file.partition("/")[0] for file in chosen if "/" in file}))
    labels = {name: label for label, name in enumerate(classes)}
    keys = unique_keys(chosen)
    ids = unique_ids(keys)
    sources = tuple(
        Source(
            Place(str(folder / file)),
            file,
            key,
            extension(file),
            uid,
            labels.get(file.partition("/")[0], -1),
            file_bytes(folder / file),
        )
        for file, key, uid in zip(chosen, keys, ids, strict=True)
    )
    return Listing(sources, tuple(Note(f, r) for f, r in reasons.items() if r), classes)


def walk(folder: Path, out: Path) -> Iterator[Path]:
    """Every file below `folder`; links are followed, but not into a folder they lie in."""
    away = out.resolve()
    for place, folders, names in os.walk(folder, followlinks=True):
        here = Path(place)
        inside = here.resolve()
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".")
            and (there := (here / name).resolve()) != away
            and not inside.is_relative_to(there)
        ]
        yield from (here / name for name in names)


def why_skipped(file: str, extensions: Collection[str]) -> str:
    """Why a file is not meant for packing; empty if it is."""
    if PurePosixPath(file).name.startswith("."):
        return "hidden file"
    return "" if extension(file) in extensions else "not an image extension"


def file_bytes(path: Path) -> int:
    """Size of a file; 0 if that cannot be told."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def extension(file: str) -> str:
    return PurePosixPath(file).suffix.removeprefix(".").lower()


def unique_keys(files: list[str]) -> list[str]:
    """Safe keys of sorted files; the second of equal ones becomes `key_2`, and so on."""
    taken: set[str] = set()
    tries: Counter[str] = Counter()
    keys = []
    for file in files:
        key = wanted = safe_key(file)
        while key in taken:
            tries[wanted] += 1
            key = f"{wanted}_{tries[wanted] + 1}"
        taken.add(key)
        keys.append(key)
    return keys


def safe_key(file: str) -> str:
    """The path without extension, such that webdataset reads it back whole.

    Dots in the base name would end the key, `__` starts metadata, `..` leaves the folder.
    """
    path = PurePosixPath(UNSAFE.sub("_", file))
    parts = [part.replace("..", "_") for part in path.parts[:-1]] + [path.stem.replace(".", "_")]
    return "/".join(re.sub("^__+", "_", part) for part in parts)


def unique_ids(keys: list[str]) -> list[int]:
    """The sample id of every key.

    Raises:
        ShardError: two keys share one id (once in 4 billion sets of 100,000 samples).
    """
    ids = [sample_id(key) for key in keys]
    if len(set(ids)) < len(ids):
        ((uid, _),) = Counter(ids).most_common(1)
        first, second = [key for key, i in zip(keys, ids, strict=True) if i == uid][:2]
        raise ShardError(f"{first!r} and {second!r} have the same sample id; rename one file")
    return ids


def shuffled(sources: tuple[Source, ...], seed: int) -> list[Source]:
    """The sources by the keyed random words of their ids: listing order has no influence."""
    ids = np.array([source.uid for source in sources], np.int64)
    high, low = words(2, seed=seed, epoch=0, stream="shards/pack", ids=ids).T
    return [sources[i] for i in np.lexsort((ids, low, high))]
