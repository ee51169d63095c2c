"""Labels beside shards: a CSV file that names the class of some samples, for people and programs.

    uid,key,label,confidence
    -8112894436208340923,birds/0017,owl,0.9731

`key` is the name of a sample and `uid` its hash; one of the two columns is enough, and confidence
is 1 where it is not said. Samples that the file does not name keep the labels of their shards.
Classes are joined by their names: where the shards have classes, the file may name no others.
`sslpipe pseudo-label` writes such a file; `train`, `eval` and `pack` read it.
"""

import csv
import difflib
import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import ShardError
from ..process import regular_file
from ..recipe.names import suggest
from ..rng import sample_id
from .side_files import replace_file

I64 = npt.NDArray[np.int64]
COLUMNS = ("uid", "key", "label", "confidence")
FIRST, LAST = -(2**63), 2**63 - 1  # of uids


class LabelRow(NamedTuple):
    """The label of one sample. `key` is "" where only the uid is known; confidence in [0, 1]."""

    uid: int
    key: str
    label: str  # the name of its class
    confidence: float

    @property
    def name(self) -> str:
        """The key, or the uid where there is none: how messages name the sample."""
        return self.key or str(self.uid)


@dataclass(frozen=True)
class LabelTable:
    """Labels of samples, ascending by uid: see `label_table`. `where` they stand, for errors."""

    where: str
    rows: tuple[LabelRow, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names that are used, sorted."""
        return tuple(sorted({row.label for row in self.rows}))

    @property
    def fingerprint(self) -> str:
        """Hash of which sample has which label, whatever the order of rows and the confidences."""
        digest = hashlib.blake2b(digest_size=16)
        for row in self.rows:
            digest.update(f"{row.uid} {row.label!r}\n".encode())
        return "b2:" + digest.hexdigest()

    @cached_property
    def uids(self) -> I64:
        """The uids of all rows, (n,) int64, ascending."""
        return np.array([row.uid for row in self.rows], dtype=np.int64)

    def numbered(self, classes: Sequence[str]) -> tuple[I64, tuple[str, ...]]:
        """Class numbers (n,), and the names that they count: `classes`, or its own if it is empty.

        Raises:
            ShardError: a name is none of `classes`.
        """
        names = tuple(classes) or self.classes
        number = {name: i for i, name in enumerate(names)}
        for row in self.rows:
            if row.label not in number:
                close = difflib.get_close_matches(row.label, names, n=1)
                hint = f"did you mean {close[0]!r}? " if close else ""
                raise ShardError(
                    f"{self.where}: {row.name} is labelled {row.label!r}, which is no class of the "
                    f"shards; {hint}They have {len(names):,}, {names[0]!r} to {names[-1]!r}"
                )
        return np.array([number[row.label] for row in self.rows], dtype=np.int64), names

    def check_samples(self, known: I64, what: str) -> None:
        """Check that all samples are among `known` uids, of `what`.

        Raises:
            ShardError: one is not.
        """
        missing = np.flatnonzero(~np.isin(self.uids, known))
        if len(missing):
            raise ShardError(
                f"{self.where}: {self.rows[missing[0]].name} is no sample of {what} "
                f"({len(missing):,} of {len(self.rows):,} rows); remove such rows, or name the "
                "shards that were labelled"
            )


def label_table(where: str, rows: Iterable[LabelRow]) -> LabelTable:
    """Make a table of rows in any order.

    Raises:
        ShardError: a sample has two.
    """
    ordered = sorted(rows)
    for before, row in pairwise(ordered):
        if before.uid == row.uid:
            raise ShardError(f"{where}: {row.name} has two rows; keep the one that is right")
    return LabelTable(where, tuple(ordered))


@dataclass(frozen=True, slots=True)
class Relabelled:
    """Labels that some samples of a set have instead of those of its index.

    uids, numbers: (n,), ascending by uid. `classes`: what the numbers of the whole set mean.
    `fingerprint`: of the table.
    """

    uids: I64
    numbers: I64
    classes: tuple[str, ...]
    fingerprint: str

    def labels(self, uids: I64, labels: npt.NDArray[np.integer]) -> I64:
        """The labels of some samples, (b,), given those of the index."""
        places = np.searchsorted(self.uids, uids).clip(max=len(self.uids) - 1)
        return np.where(self.uids[places] == uids, self.numbers[places], labels).astype(np.int64)


def write_labels(path: Path, table: LabelTable) -> None:
    """Write a file of labels, whole or not at all."""
    text = io.StringIO(newline="")
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(COLUMNS)
    lines.writerows((*row[:3], f"{row.confidence:.4f}") for row in table.rows)
    replace_file(path, text.getvalue().encode())


def read_labels(path: str | Path) -> LabelTable:
    """Read a file of labels.

    Raises:
        ShardError: it cannot be read, lacks columns or rows, or a line is wrong.
    """
    try:
        text = regular_file(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ShardError(
            f"{path}: cannot be read ({error.strerror}); name a CSV file of labels"
        ) from error
    except UnicodeDecodeError as error:
        raise ShardError(
            f"{path}: is no text (byte {error.start} is not UTF-8); name a CSV file of labels"
        ) from error
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    try:
        check_columns(path, reader.fieldnames or ())
        rows = [parsed(row, f"{path}:{reader.line_num}") for row in reader]
    except csv.Error as error:
        raise ShardError(
            f"{path}:{reader.line_num}: is no CSV ({error}); correct the line"
        ) from error
    if not rows:
        raise ShardError(f"{path}: labels no sample; leave it out, or write rows below its header")
    return label_table(str(path), rows)


def check_columns(path: str | Path, names: Sequence[str]) -> None:
    """Check the header.

    Raises:
        ShardError: an unknown column, or one that is missing.
    """
    for name in names:
        if name not in COLUMNS:
            raise ShardError(f"{path}:1: unknown column {name!r}; {suggest(name, COLUMNS)}")
    if "label" not in names or not {"uid", "key"} & set(names):
        raise ShardError(f"{path}:1: the header is {','.join(names)!r}; write {','.join(COLUMNS)}")


def parsed(row: dict[str, str | None], where: str) -> LabelRow:
    """The row that a line is.

    Raises:
        ShardError: a field is missing, or is none of its kind.
    """
    if None in row or None in row.values():
        raise ShardError(f"{where}: has other fields than the header; correct the line")
    key, label = (row.get(name) or "" for name in ("key", "label"))
    if not label:
        raise ShardError(f"{where}: has no label; name a class, or remove the line")
    uid = parsed_uid(row.get("uid") or "", key, where)
    return LabelRow(uid, key, label, confidence_of(row, where))


def parsed_uid(text: str, key: str, where: str) -> int:
    """The uid that a line means.

    Raises:
        ShardError: no number, or that of another key.
    """
    if not text and key:
        return sample_id(key)
    try:
        uid = int(text)
    except ValueError:
        uid = LAST + 1
    if not FIRST <= uid <= LAST:
        raise ShardError(f"{where}: uid = {text!r} is no sample's number; correct the line")
    if key and uid != sample_id(key):
        raise ShardError(
            f"{where}: uid = {text} is not that of {key!r} ({sample_id(key)}); keep one of the two"
        )
    return uid


def confidence_of(row: dict[str, str | None], where: str) -> float:
    """The confidence of a line; 1 where it says none.

    Raises:
        ShardError: it is no number in [0, 1].
    """
    text = row.get("confidence") or "1"
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ShardError(f"{where}: confidence = {text!r}: give a number from 0 to 1")
    return value
