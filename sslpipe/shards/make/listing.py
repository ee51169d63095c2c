"""What inputs offer for packing: files, safe unique keys, ids, classes, shuffled order."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...errors import ShardError
from ...rng import sample_id, words64
from ..index import MAX_BYTES
from ..labels_file import LabelTable
from .frames import FPS
from .inputs.expand import Input, absolute, expand
from .inputs.found import INPUT, Columns, Found, Options
from .source import InputFile, Listing, Note, Origin

Label = int | str | None

TELL = 1000  # files between two calls of `progress`
MAX_CLASS = 2**20  # a larger number is an id, not a class


def list_inputs(
    inputs: Sequence[str | Path],
    *,
    out: str | Path,
    extensions: Collection[str],
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    labels: LabelTable | None = None,
    fps: float = FPS,
    progress: Callable[[int], None] | None = None,
) -> Listing:
    """List what folders, lists, tables, tars and zips offer: shards/README.md says how.

    `out` is left out where it lies in a folder to pack. `columns`: of tables. `labels` go before
    those of the inputs, by key. `fps`: of folders of frames. `progress` gets the number of files
    found so far.

    Raises:
        ShardError: an input that does not exist, holds nothing or is of no known kind; labels
            that do not fit together; two keys with one sample id.
        ExtraError: a client or reader that is not installed.
    """
    options = Options(frozenset(extensions), absolute(str(out)), columns, fps)
    singles = expand(inputs)
    notes: list[Note] = []
    seen: set[Origin] = set()
    groups: list[list[Found]] = []
    for single in singles:
        named = f"{single.name}: " if len(singles) > 1 else ""
        found = list_input(single, named, options, notes, sum(map(len, groups)), progress)
        groups.append(sorted(usable(found, seen, notes), key=lambda item: item.file))
    listing = assemble(groups, notes)
    return relabelled(listing, labels) if labels else listing


def list_input(
    single: Input,
    named: str,
    options: Options,
    notes: list[Note],
    before: int,
    progress: Callable[[int], None] | None,
) -> list[Found]:
    """What one input offers, with `named` before its names; adds to `notes`.

    Raises:
        ShardError: it holds nothing to pack.
    """
    found: list[Found] = []
    told = len(notes)
    for item in single.reader(single.url, options):
        if named:
            item = replace(item, file=named + item.file)
        if isinstance(item, Note):
            notes.append(item)
            continue
        found.append(item)
        if progress and len(found) % TELL == 0:
            progress(before + len(found))
    if not found:
        looked = ", ".join(f".{ext}" for ext in sorted(options.extensions))
        kinds = sorted({kind[0] for note in notes[told:] if (kind := INPUT.search(note.file))})
        files = " ".join(f"{single.name.rstrip('/')}/*{kind}" for kind in kinds)
        raise ShardError(
            f"{single.name}: holds nothing to pack (looked for {looked}); "
            f"{f'name its files, {files}' if files else 'check the path'}"
        )
    if progress:
        progress(before + len(found))
    return found


def usable(found: Iterable[Found], seen: set[Origin], notes: list[Note]) -> Iterator[Found]:
    """Leave out what was named before or is too large; adds to `seen` and `notes`."""
    for item in found:
        if item.place in seen:
            notes.append(Note(item.file, "is named again; the first is used"))
        elif item.size > MAX_BYTES:
            notes.append(Note(item.file, f"{item.size:,} bytes; the limit is {MAX_BYTES:,}"))
        else:
            seen.add(item.place)
            yield item


def assemble(groups: list[list[Found]], notes: list[Note]) -> Listing:
    """One listing of what the inputs offer: unique keys and ids, classes merged by name."""
    labels = [label for group in groups for label in one_kind(group)]
    classes = classes_of(labels)
    numbers: dict[Label, int] = {name: number for number, name in enumerate(classes)}
    found = [item for group in groups for item in group]
    keys = unique_keys(item.key for item in found)
    sources = [
        InputFile(f.place, f.file, key, f.ext, uid, number_of(label, numbers), f.size, f.extras)
        for f, key, uid, label in zip(found, keys, unique_ids(keys), labels, strict=True)
    ]
    sources.sort(key=lambda source: source.key)
    return Listing(tuple(sources), tuple(notes), classes, how_read(groups, labels))


def how_read(groups: list[list[Found]], labels: list[Label]) -> str:
    """How labels became class numbers, for the summary; a number that became a name is told."""
    known = [label for label in labels if label is not None]
    if not known:
        return "none"
    if isinstance(known[0], int):
        return "numbers, kept as they are"
    said = "names, numbered in the order of their text" + alike(labels)
    for group in groups:
        names = [item.label for item in group if isinstance(item.label, str)]
        numbers = [item.label for item in group if isinstance(item.label, int)]
        if names and numbers:
            return (
                f"{said}; {len(numbers):,} that are numbers ({numbers[0]}) are numbered anew with "
                f"them, because {len(names):,} are none ({names[0]!r})"
            )
    return said


def alike(labels: Iterable[Label]) -> str:
    """What to say of classes whose names a reader takes for one: other code points, other case."""
    looks: dict[str, set[str]] = {}
    for label in labels:
        if isinstance(label, str):
            looks.setdefault(unicodedata.normalize("NFC", label).casefold(), set()).add(label)
    same = [sorted(names) for names in looks.values() if len(names) > 1]
    if not same:
        return ""
    first = " and ".join(map(ascii, same[0]))
    return f"; {first} are two classes, though they read alike: rename one to make them one"


def one_kind(found: list[Found]) -> list[Label]:
    """The labels of one input; numbers become names where others are names."""
    labels: list[Label] = [item.label for item in found]
    if not any(isinstance(label, str) for label in labels):
        return labels
    return [None if label is None else str(label) for label in labels]


def classes_of(labels: Iterable[Label]) -> tuple[str, ...]:
    """Sorted class names; where classes are numbers, a name for each up to the largest.

    Raises:
        ShardError: names and numbers, or numbers that are none of classes.
    """
    known = set(labels) - {None}
    names = sorted(label for label in known if isinstance(label, str))
    numbers = sorted(label for label in known if isinstance(label, int))
    if names and numbers:
        raise ShardError(
            f"labels: one input names classes ({names[0]!r}), another numbers them "
            f"({numbers[0]}); use names or numbers in all"
        )
    for number in numbers[:1] + numbers[-1:]:
        if not 0 <= number <= MAX_CLASS:
            raise ShardError(
                f"labels: {number} is no class number (0 to {MAX_CLASS:,}; -1 or nothing: none); "
                "name another column, or correct it"
            )
    return tuple(names) if names else tuple(str(n) for n in range(max(numbers, default=-1) + 1))


def number_of(label: Label, numbers: dict[Label, int]) -> int:
    """The number of a class by its name or number; -1: it has none."""
    if label is None:
        return -1
    return label if isinstance(label, int) else numbers[label]


def unique_keys(wanted: Iterable[str]) -> list[str]:
    """Keys in order; the second of equal ones becomes `key_2`, and so on."""
    taken: set[str] = set()
    tries: Counter[str] = Counter()
    keys = []
    for wish in wanted:
        key = wish
        while key in taken:
            tries[wish] += 1
            key = f"{wish}_{tries[wish] + 1}"
        taken.add(key)
        keys.append(key)
    return keys


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


def relabelled(listing: Listing, table: LabelTable) -> Listing:
    """The listing with the labels of a table; classes that it brings are numbered with the others.

    Raises:
        ShardError: a sample of the table is not in the listing.
    """
    uids = np.array([source.uid for source in listing.sources], dtype=np.int64)
    table.check_samples(uids, "the inputs")
    classes = listing.classes
    if not {*table.classes} <= {*classes}:
        classes = tuple(sorted({*classes, *table.classes}))
    numbers = {name: number for number, name in enumerate(classes)}
    given = {row.uid: numbers[row.label] for row in table.rows}
    kept = [*(numbers[name] for name in listing.classes), -1]  # label -1 reads the last entry
    sources = [replace(s, label=given.get(s.uid, kept[s.label])) for s in listing.sources]
    said = f"{listing.labels}; {len(given):,} samples by {table.where}"
    return replace(listing, sources=tuple(sources), classes=classes, labels=said)


def shuffled(sources: Sequence[InputFile], seed: int) -> list[InputFile]:
    """The sources by the keyed random words of their ids: listing order has no influence."""
    ids = np.array([source.uid for source in sources], np.int64)
    keys = words64(ids, seed=seed, stream="shards/pack")
    return [sources[i] for i in np.lexsort((ids, keys))]
