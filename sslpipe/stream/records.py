"""What the indexes say of any samples of a corpus, for many samples at once.

The indexes of the shards that were asked for lie behind each other in one table, so the records of
a batch are one look-up, however many shards its samples lie in.
"""

import threading
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..shards.index import MEMBER, SAMPLE, Index
from ..shards.labels_file import Relabelled, read_labels
from ..shards.read.store import ShardStore
from .lanes import distinct_numbers
from .reader import MemberPlace, Wanted

I64 = npt.NDArray[np.int64]
Table = npt.NDArray[np.void]
ROWS = 1 << 23  # samples that are kept, whatever their shards: 0.5 GB


class Records(NamedTuple):
    """Two tables of n samples: of SAMPLE, and of MEMBER their payloads."""

    samples: Table
    payloads: Table


class RecordTable:
    """`at(shards, rows)` -> Records; safe in threads. `relabelled`: goes before their labels."""

    def __init__(
        self, store: ShardStore, shards: int, relabelled: Relabelled | None = None
    ) -> None:
        self._store, self._relabelled = store, relabelled
        self._first: I64 = np.full(shards, -1, dtype=np.int64)  # of each shard in the table
        self._samples, self._payloads = np.empty(0, SAMPLE), np.empty(0, MEMBER)
        self._used = 0
        self._lock = threading.Lock()

    def at(self, shards: I64, rows: I64) -> Records:
        """The records of samples.

        Raises:
            ShardError: an index is missing, cut, or of another tar.
        """
        with self._lock:
            first = self._first[shards]
            if (missing := first < 0).any():
                self._add(
                    distinct_numbers(shards[missing]).tolist(), distinct_numbers(shards).tolist()
                )
                first = self._first[shards]
            places = first + rows
            return Records(self._samples[places], self._payloads[places])

    def _add(self, missing: Sequence[int], needed: Sequence[int]) -> None:
        """Read indexes; where these are too many samples, first forget all but what is needed."""
        read = {shard: self._store.index(shard) for shard in missing}
        if self._used and self._used + sum(map(len, read.values())) > ROWS:
            self._first[:], self._used = -1, 0
            read = {shard: self._store.index(shard) for shard in needed}
        for shard, index in read.items():
            self._append(shard, index)

    def _append(self, shard: int, index: Index) -> None:
        end = self._used + len(index)
        if end > len(self._samples):
            room = max(end, 2 * len(self._samples))
            self._samples = np.resize(self._samples, room) if self._used else np.empty(room, SAMPLE)
            self._payloads = (
                np.resize(self._payloads, room) if self._used else np.empty(room, MEMBER)
            )
        self._samples[self._used : end] = index.samples
        if self._relabelled:
            new = self._samples[self._used : end]
            new["label"] = self._relabelled.labels(new["uid"], new["label"])
        self._payloads[self._used : end] = index.payloads
        self._first[shard], self._used = self._used, end


def open_labels(path: str, store: ShardStore) -> Relabelled:
    """Read the labels of `path` for the samples of a store.

    Reads all indexes, 60 bytes a sample, in order to know all uids: once, and only where labels are
    given.

    Raises:
        ShardError: the file is missing or damaged, or is of other samples or classes; or an index
            is missing.
    """
    table = read_labels(path)
    samples = [store.index(shard).samples for shard in range(store.shards)]
    table.check_samples(np.concatenate([each["uid"] for each in samples]), store.place)
    plain = max(int(each["label"].max()) for each in samples) + 1  # where numbers have no names
    numbers, classes = table.numbered(store.classes or tuple(map(str, range(plain))))
    return Relabelled(table.uids, numbers, classes, table.fingerprint)


def others(index: Index, row: int, wanted: Collection[str]) -> list[tuple[int, ...]]:
    """The members of a sample that are wanted beside its payload: ext, start, header, size, CRC."""
    sample = index.sample(row)
    numbers = (n for n in range(sample.members) if n != sample.primary)
    found = (index.member(sample.first + number) for number in numbers)
    return [
        (member.ext, member.start, member.header, member.size, member.crc)
        for member in found
        if index.extensions[member.ext] in wanted
    ]


def wanted(index: Index, row: int, *, file: str, members: Collection[str] = ()) -> Wanted:
    """One sample as `reader.read_sample` asks for it. file: of its shard, for messages.

    members: extensions that are read beside the payload; a sample may lack them.
    """
    sample, payload = index.sample(row), index.payload(row)
    beside = [
        MemberPlace(index.extensions[ext], *place) for ext, *place in others(index, row, members)
    ]
    return Wanted(
        file, row, sample.uid, sample.label, sample.flags, sample.extent,
        index.extensions[payload.ext], payload.start, payload.header, payload.size, payload.crc,
        beside,
    )  # fmt: skip
