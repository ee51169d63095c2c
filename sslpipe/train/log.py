"""The numbers of a run on disk: metrics.jsonl and TensorBoard, one row per logged step.

Also the hold that a run has on its folder meanwhile.
"""

import json
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from ..errors import ExtraError, ShardError
from ..pipeline import Pipeline
from ..shards.side_files import held, naming, read_objects, replace_file

PER_SECOND = "s_per_s"  # how names of rates end
LoggedRow = Mapping[str, float | int]  # holds `step`


class Sink(Protocol):
    """What takes the rows of a run: a file, TensorBoard, the screen."""

    def row(self, row: LoggedRow) -> None:
        """Take one row; it is not lost if the process is killed after that."""

    def close(self) -> None:
        """Let go of files; no row comes after it."""


class JsonLines:
    """Append rows to a file, one JSON object per line; non-finite numbers become null."""

    def __init__(self, path: Path, *, step: int) -> None:
        """Go on after `step`: rows of later steps, and a half-written one, are dropped.

        A run that begins, at step 0, has none.
        """
        kept = rows_until(path, step) if step else []
        replace_file(path, "".join(json.dumps(row) + "\n" for row in kept).encode())
        self._path, self._file = path, path.open("a", encoding="utf-8")

    def row(self, row: LoggedRow) -> None:
        """Append one row, at once."""
        finite = {key: value if math.isfinite(value) else None for key, value in row.items()}
        with naming(self._path):
            self._file.write(json.dumps(finite) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file; a fault of the disk that shows only now names it."""
        with naming(self._path):
            self._file.close()


def rows_until(path: Path, step: int) -> list[dict[str, Any]]:
    """Read the rows of a file up to and with `step`; a line that is no row ends it."""
    rows: list[dict[str, Any]] = []
    if not path.exists():
        return rows
    try:
        for _, row in read_objects(path, "row of metrics"):
            if row["step"] <= step:
                rows.append(row)
    except (ShardError, KeyError, TypeError):
        pass  # the process died while it wrote this line
    return rows


class TensorBoard:
    """Write the same rows for TensorBoard.

    Not by torch's SummaryWriter: it writes in a thread, which prints a trace where a disk is full.
    """

    def __init__(self, folder: Path, *, step: int) -> None:
        """Go on after `step`: later points of an earlier attempt are hidden.

        Raises:
            ExtraError: tensorboard is not installed.
        """
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError as error:
            raise ExtraError(
                "train: tensorboard is not installed; pip install 'sslpipe[train]'"
            ) from error
        made = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{step}"
        self._path = folder / f"events.out.tfevents.{made}"
        self._file = self._path.open("ab")
        self._records, self._event = RecordWriter(self._file), event_pb2.Event
        self._summary = summary_pb2.Summary
        first = step + 1 if step else 0  # points from it on are those of this attempt
        self._write(step=first, file_version="brain.Event:2")
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(step=first, session_log=start)

    def _write(self, **content: Any) -> None:
        """Write one event."""
        with naming(self._path):
            event = self._event(wall_time=time.time(), **content)
            self._records.write(event.SerializeToString())

    def row(self, row: LoggedRow) -> None:
        """Write and flush one row."""
        for name, value in row.items():
            if name != "step":
                point = self._summary.Value(tag=name, simple_value=value)
                self._write(step=int(row["step"]), summary=self._summary(value=[point]))
        with naming(self._path):
            self._file.flush()

    def close(self) -> None:
        """Close the event file."""
        with naming(self._path):
            self._file.close()


class Meter:
    """Measures the throughput between two readings."""

    def __init__(self, pipeline: Pipeline, *, step: int, samples_per_step: int) -> None:
        self._pipeline = pipeline
        self._samples_per_step = samples_per_step  # over all ranks
        self._mark = (step, time.perf_counter(), pipeline.wait_seconds)

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """Do what is no training; the time of it does not count."""
        start = time.perf_counter()
        try:
            yield
        finally:
            step, begin, waited = self._mark
            self._mark = (step, begin + time.perf_counter() - start, waited)

    def read(self, step: int) -> dict[str, float]:
        """Tell the rate of all ranks, and `data_wait`, a share of this rank's time.

        The rate is called by what samples are: `images_per_s`, `rows_per_s`.
        """
        now = (step, time.perf_counter(), self._pipeline.wait_seconds)
        steps, seconds, waited = (new - old for new, old in zip(now, self._mark, strict=True))
        self._mark = now
        seconds = max(seconds, 1e-9)
        return {
            self._pipeline.units.sample + PER_SECOND: steps * self._samples_per_step / seconds,
            "data_wait": min(waited / seconds, 1.0),
        }


def hold_folder(out: Path, stack: ExitStack) -> None:
    """Keep the folder of a run to this process until `stack` ends; it leaves no file behind.

    Raises:
        StateError: another process has it, whose rows and checkpoints would mix with ours.
    """
    stack.enter_context(held(out, "trains"))
