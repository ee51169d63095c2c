"""Tasks that were submitted, and what becomes of them.

Results stand at the head of a slot: one record of every sample and part.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ..shards.read.open_tars import ShardTar
from .tasks import DONE, FAULT, FILE, KEY_AT, NEW, PLACE, RESULT, ROW, WORDS, Task, shard_of
from .worker_tasks import Failed

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
Results = npt.NDArray[np.void]
STATUS = 0xFFFF  # of a result in its first word


class FileStore(Protocol):
    """Opens the files that samples lie in: shards, or the memory of an iterable's (parcels.py)."""

    def open(self, shard: int) -> ShardTar: ...
    def holds(self, shard: int) -> bool: ...
    def name(self, shard: int) -> str: ...
    def beside(self, shard: int) -> str: ...


class Done(NamedTuple):
    """A task that is done, and what its report says: most say nothing beside the slot."""

    task: Task
    faults: Sequence[Failed]
    keys: Mapping[int, str]


class Flown:
    """Jobs that were submitted together, and what they will have found.

    attend: sees to it that they end, in the thread that calls it.
    """

    def __init__(self, jobs: int, attend: "Callable[[Flown], None]") -> None:
        self._left, self._told, self._attend = jobs, list[Done](), attend
        self._error: Exception | None = None

    @property
    def ended(self) -> bool:
        """Whether all jobs are done, or in vain."""
        return self._left <= 0 or self._error is not None

    def add(self, told: Sequence[Done]) -> None:
        """Note that one more job is done, and what was told of it."""
        self._told += told
        self._left -= 1

    def fail(self, error: Exception) -> None:
        """One job cannot be done, so all are in vain."""
        self._error = self._error or error

    def result(self) -> list[Done]:
        """Wait for all jobs; what was told of them, often nothing.

        Raises what is no fault of a sample.
        """
        if not self.ended:
            self._attend(self)
        if self._error:
            raise self._error
        return self._told


@dataclass(slots=True, eq=False)
class Job:
    """A task that was submitted, with what becomes of it."""

    task: Task
    memory: U8
    flown: Flown
    done: list[Done] = field(default_factory=list)  # of samples at which workers died
    deaths: dict[int, int] = field(default_factory=dict)  # of workers, by the sample's place


def table_of(memory: U8 | I64, samples: int, parts: int) -> Results:
    """(samples, parts) of RESULT, which share the memory of their slot."""
    return np.ndarray((samples, parts), RESULT, memory)


def table_with(task: Task, memory: U8) -> Results:
    """The table of a slot down to the last sample of a task."""
    return table_of(memory, int(task.table[:, PLACE].max()) + 1, len(task.widths))


def results_of(task: Task, memory: U8) -> Results:
    """(n, P) results of the samples of a task, copied."""
    return table_with(task, memory)[task.table[:, PLACE]]


def done_samples(task: Task, memory: U8) -> int:
    """How many samples of a task are done, in their order."""
    new = (results_of(task, memory)["status"] == NEW).any(1)
    return int(new.argmax()) if new.any() else len(new)


def forget(task: Task, memory: U8) -> None:
    """Make all results of a task new again."""
    if len(task.table):
        table_with(task, memory)["status"][task.table[:, PLACE]] = NEW


def key_of(result: Any) -> str | None:
    """The key of a sample as its first result has it; None: it is not known, or does not fit."""
    return bytes(result["key"]).decode() if result["key_bytes"] > 0 else None


def keys_of(words_NW: I64) -> list[str]:
    """The keys in the first results of samples, decoded in one call; "": not known, or no fit."""
    if not len(words_NW):
        return []
    table = np.ndarray(len(words_NW), RESULT["key"], words_NW, KEY_AT, words_NW.strides[:1])
    return b"\0".join(table.tolist()).decode().split("\0")


def are_alike(words_NW: I64) -> bool:
    """Whether all samples are done, the arrays of each part being of one kind."""
    kinds = words_NW[:, ::WORDS]
    alike = kinds.tobytes() == len(kinds) * kinds[:1].tobytes()
    return alike and all(kind & STATUS == DONE for row in kinds[:1].tolist() for kind in row)


def blame(job: Job, reason: str, allowed: int, stores: Sequence[FileStore]) -> None:
    """Take note at which sample of a task a worker died; after `allowed` deaths it is bad.

    All others are done again: their faults and long keys died with the worker.
    """
    reached, results = done_samples(job.task, job.memory), results_of(job.task, job.memory)
    if reached < len(results):
        place = int(job.task.table[reached, PLACE])
        job.deaths[place] = job.deaths.get(place, 0) + 1
        if job.deaths[place] >= allowed:
            key = key_of(results[reached, 0])
            told = f"{named(stores, job.task, reached, key)}: {reason}"
            job.done.append(Done(job.task.rest([reached]), [Failed(0, told, key)], {}))
            table_of(job.memory, place + 1, results.shape[1])[place]["status"] = FAULT
            job.task = job.task.rest([row for row in range(len(results)) if row != reached])
    forget(job.task, job.memory)
    if not len(job.task.table):
        job.flown.add(job.done)


def named(stores: Sequence[FileStore], task: Task, row: int, key: str | None) -> str:
    """A sample of a task, as other faults name theirs."""
    corpus, shard = shard_of(int(task.table[row, FILE]))
    known = f"sample {task.table[row, ROW]}" if key is None else key
    return f"{stores[corpus].name(shard)} {known}"
