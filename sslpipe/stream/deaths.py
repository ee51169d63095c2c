"""What becomes of a task at which a worker died: it may be the fault of one of its samples."""

from collections.abc import Sequence

from ..shards.read.store import ShardStore
from .jobs import Done, Job, done_samples, forget, key_of, results_of, table_of
from .tasks import FAULT, FILE, PLACE, ROW, Task, shard_of
from .worker_tasks import Failed


def blame(job: Job, reason: str, allowed: int, stores: Sequence[ShardStore]) -> None:
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


def named(stores: Sequence[ShardStore], task: Task, row: int, key: str | None) -> str:
    """A sample of a task, as other faults name theirs."""
    corpus, shard = shard_of(int(task.table[row, FILE]))
    known = f"sample {task.table[row, ROW]}" if key is None else key
    return f"{stores[corpus].name(shard)} {known}"
