"""What packing has to tell: progress, what was left out, and the closing summary."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..codec import bin_names
from ..manifest import Manifest
from ..side_files import replace_file
from .journal import REPORT
from .source import Note
from .work import ShardDone

MOST = 10  # reasons in the summary

Table = dict[str, str]


@dataclass(frozen=True, slots=True)
class PackProgress:
    """Progress: this many more samples of `total` have gone through a stage ("hash" or "pack")."""

    stage: str
    samples: int
    bytes_in: int
    bytes_out: int
    failed: int
    total: int


@dataclass(frozen=True, slots=True, order=True)
class Duplicate:
    """A file that repeats another one, which comes first by key."""

    file: str
    of: str
    reason: str


@dataclass(frozen=True, slots=True)
class PackReport:
    """What `pack` made, and what it left out."""

    manifest: Manifest
    failures: tuple[Note, ...]  # files that do not read or decode
    skipped: tuple[Note, ...]  # files that were not meant
    duplicates: tuple[Duplicate, ...]
    done: tuple[ShardDone, ...]
    measure: str  # what the histogram of sizes counts by
    bins: tuple[int, ...]  # its edges
    bytes_in: int  # read in this run, not in one that it went on with
    seconds: float
    labels: str  # how they were read
    frame_rate: str  # what folders of frames are said to have; empty: there are none

    @property
    def summary(self) -> dict[str, Table]:
        """Small tables by title: totals, formats, sizes and reasons of failures."""
        size = sum(shard.bytes for shard in self.manifest.shards)
        totals = {
            "samples": self.manifest.samples,
            "shards": len(self.manifest.shards),
            "classes": len(self.manifest.classes),
            "failed": len(self.failures),
            "skipped": len(self.skipped),
            "duplicates": len(self.duplicates),
        }
        return {
            "packed": {
                **counts(totals),
                "size": f"{size / 1e6:,.1f} MB",
                "labels": self.labels,
                **({"frame rate": self.frame_rate} if self.frame_rate else {}),
                "rate": f"{self.bytes_in / 1e6 / max(self.seconds, 1e-9):,.1f} MB/s read",
            },
            "formats": counts(total(done.formats for done in self.done)),
            self.measure: counts(in_order(self.bins, total(done.sizes for done in self.done))),
            "failures": counts(
                dict(Counter(note.reason for note in self.failures).most_common(MOST))
            ),
        }


@dataclass(frozen=True, slots=True)
class Estimate:
    """What packing would make. Duplicates and failures are not known before."""

    samples: int
    shards: int
    bytes_out: int
    sampled: int  # samples that were read, and encoded if asked, to know
    seconds: float  # on as many workers as asked, at the rate of the sampled ones
    labels: str  # how they were read
    frame_rate: str  # as in PackReport

    @property
    def summary(self) -> dict[str, Table]:
        """Rows of a table for people, as those of `PackReport`."""
        minutes, seconds = divmod(max(1, round(self.seconds)), 60)
        return {
            "would pack": {
                "samples": f"{self.samples:,}",
                "shards": f"about {self.shards:,}",
                "size": f"about {self.bytes_out / 1e6:,.1f} MB",
                "time": f"about {minutes}:{seconds:02d} min" if minutes else f"about {seconds} s",
                "labels": self.labels,
                **({"frame rate": self.frame_rate} if self.frame_rate else {}),
                "estimated from": f"{self.sampled:,} samples",
            }
        }


def total(parts: Iterable[dict[str, int]]) -> Counter[str]:
    """The sum of counts by name."""
    found: Counter[str] = Counter()
    for part in parts:
        found.update(part)
    return found


def counts(numbers: dict[str, int]) -> Table:
    """Numbers as the tables of a summary show them."""
    return {name: f"{number:,}" for name, number in numbers.items()}


def in_order(edges: tuple[int, ...], found: Counter[str]) -> dict[str, int]:
    """The bins of a histogram that are not empty, in their order."""
    return {name: found[name] for name in bin_names(edges) if found[name]}


def write_pack_report(
    out: Path,
    failures: Iterable[Note],
    skipped: Iterable[Note],
    duplicates: Iterable[Duplicate],
) -> None:
    """`report.jsonl`: one line per file that is not in the shards; no file if there is none."""
    rows: list[dict[str, str]] = [
        {"kind": kind, "file": note.file, "reason": note.reason}
        for kind, notes in (("failed", failures), ("skipped", skipped))
        for note in sorted(notes)
    ]
    rows += [
        {"kind": "duplicate", "file": twin.file, "of": twin.of, "reason": twin.reason}
        for twin in sorted(duplicates)
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    if lines:
        replace_file(out / REPORT, ("\n".join(lines) + "\n").encode("utf-8", "replace"))
