"""What all commands show things with: the console, notes on stderr, progress bars."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console()
notes = Console(stderr=True)


@contextmanager
def bar(unit: str) -> Iterator[Any]:
    """A progress bar on stderr: done, rate and time left."""
    columns = (
        BarColumn(), MofNCompleteColumn(), TextColumn(unit),
        TextColumn("{task.fields[numbers]}"), TextColumn("eta"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=notes) as progress:
        task = progress.add_task(unit, total=None, numbers="")
        yield lambda **fields: progress.update(task, **fields)
