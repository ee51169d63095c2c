"""What becomes of the knowledge that samples are bad: counted, written down, and not too many."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import ShardError
from ..shards.exclude import LINE
from ..shards.side_files import read_objects
from .source import Fault

FEW = 10  # so many distinct bad samples are never too many
NAMED = 3  # of them the summary names


class Quarantine:
    """Counts the bad samples of one rank; with a path, writes each down once, a line of JSON.

    Several ranks may share the file: lines are appended whole.
    """

    def __init__(self, path: Path | None, *, max_fraction: float) -> None:
        self.total = 0  # times that a bad sample was met
        self._path, self._max = path, max_fraction
        self._seen = 0
        self._distinct: dict[tuple[object, ...], Fault] = {}
        self._written = written(path) if path and path.exists() else set()

    def report(self, faults: list[Fault], *, samples: int, step: int) -> None:
        """Take note of a batch of `samples` samples.

        Raises:
            ShardError: more of what was seen is bad than the limit allows.
        """
        self._seen += samples
        self.total += len(faults)
        for fault in faults:
            self._distinct.setdefault(identity(fault), fault)
            self._write(fault, step)
        bad = len(self._distinct)
        if bad > max(FEW, self._max * self._seen):
            names = "; ".join(fault.reason for fault in list(self._distinct.values())[:NAMED])
            raise ShardError(
                f"{bad} of the first {self._seen:,} samples are bad, more than "
                f"stream.max_bad_fraction = {self._max:g} allows: {names} ... Run `sslpipe "
                "verify` on the shards and mend or exclude them, or raise the limit"
            )

    def _write(self, fault: Fault, step: int) -> None:
        if self._path is None or identity(fault) in self._written:
            return
        self._written.add(identity(fault))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**asdict(fault), "step": step}, ensure_ascii=False) + "\n")


def identity(fault: Fault) -> tuple[object, ...]:
    """What makes two faults the same one."""
    return fault.manifest, fault.shard, fault.row, fault.key if fault.row is None else None


def written(path: Path) -> set[tuple[object, ...]]:
    """The faults of an earlier part of the run; a line that a crash has cut is taken off.

    Raises:
        ShardError: another line is none of ours.
    """
    text = path.read_bytes()
    whole, _, cut = text.rpartition(b"\n")
    if cut:
        path.write_bytes(whole + b"\n" if whole else b"")
    found = read_objects(path, LINE)
    return {identity(fault_of(record, f"{path}:{number}")) for number, record in found}


def fault_of(record: dict[str, Any], where: str) -> Fault:
    """A line of the file as what it was written from.

    Raises:
        ShardError: it lacks a field, or has another.
    """
    try:
        fault = Fault(**{name: value for name, value in record.items() if name != "step"})
        hash(identity(fault))
    except TypeError as error:
        raise ShardError(f"{where}: is no {LINE} ({error}); remove the line") from error
    return fault
