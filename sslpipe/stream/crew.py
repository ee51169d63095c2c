"""Who does tasks: worker processes (workers.py), or the process that submits them."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .jobs import Done, FileStore, Flown
from .part_decode import PartDecode
from .tasks import Task, shard_of, unpacked
from .worker_process import opened
from .worker_tasks import Tasks

U8 = npt.NDArray[np.uint8]


class Crew(Protocol):
    """What does tasks: `workers.Workers`, or `InProcess`."""

    def submit(self, tasks: Sequence[Task], memory: U8) -> Flown:
        """Begin with tasks whose slot is `memory`."""
        ...

    def close(self) -> None:
        """Stop; nothing is submitted afterwards."""
        ...


class InProcess:
    """Does tasks at once in the thread that submits them: `run.workers: 0`, for tiny sets."""

    def __init__(self, stores: Sequence[FileStore], parts: Sequence[PartDecode]) -> None:
        self._stores, self._parts = stores, parts

    def submit(self, tasks: Sequence[Task], memory: U8) -> Flown:
        """Do tasks; they have ended when this returns."""
        flown = Flown(len(tasks), nothing_is_left)
        try:
            for task in tasks:
                flown.add([self._do(task, memory)])
        except Exception as error:
            flown.fail(error)
        return flown

    def _do(self, task: Task, memory: U8) -> Done:
        files = {file: opened(self._stores, *shard_of(file)) for file in sorted(task.files)}
        do = Tasks(self._parts, lambda _: memory, files)
        report = do(unpacked(task.packed(0)))
        if report.error:
            raise report.error
        return Done(task, report.faults, report.keys)

    def close(self) -> None:
        """Nothing is open."""


def nothing_is_left(flown: Flown) -> None:
    """Attend to what was done in the thread that submitted it."""
    assert flown.ended
