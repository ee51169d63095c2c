"""What a person sees while a run goes on."""

import time
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from .log import PER_SECOND, LoggedRow

SELDOM = 60.0  # seconds from one line of a log to the next


class Reporter(Protocol):
    """What is told of every step, of every logged row, and of the end."""

    def start(self, step: int, total: int) -> None:
        """Begin, with `step` of `total` steps done already."""

    def step(self, step: int) -> None:
        """Take note of a step that is done; must not read the device."""

    def row(self, row: LoggedRow) -> None:
        """Take note of a logged row."""

    def close(self) -> None:
        """End, as the run is over, well or not."""

    def message(self, text: str) -> None:
        """Show the user a text beside the numbers: an alarm, where a checkpoint lies."""


class Silent:
    """A reporter that says nothing, for tests and for all ranks but the first."""

    def start(self, step: int, total: int) -> None:
        """Say nothing: this reporter is silent."""

    def step(self, step: int) -> None:
        """Say nothing: this reporter is silent."""

    def row(self, row: LoggedRow) -> None:
        """Say nothing: this reporter is silent."""

    def close(self) -> None:
        """Say nothing: this reporter is silent."""

    def message(self, text: str) -> None:
        """Say nothing: this reporter is silent."""


class Bar:
    """A progress bar: steps, loss, samples/s, shares of time that data costs, ETA.

    A file, which shows no bar before the run is over, gets a line with the same numbers at the
    first logged row, and then one a minute.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._told: float | None = None  # when a file got its last line, in seconds of the clock
        self._progress = Progress(
            BarColumn(),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),  # the bar alone gives way
            TextColumn("{task.fields[numbers]}"),
            TextColumn("eta"),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            console=console or Console(stderr=True, emoji=False),
        )
        self._task = self._progress.add_task("train", start=False, total=None, numbers="")

    def start(self, step: int, total: int) -> None:
        """Show the bar, filled up to the steps that earlier attempts did."""
        self._progress.update(self._task, completed=step, total=total)
        self._progress.start_task(self._task)
        self._progress.start()

    def step(self, step: int) -> None:
        """Move the bar; it is drawn ten times a second at most."""
        self._progress.update(self._task, completed=step)

    def row(self, row: LoggedRow) -> None:
        """Show the newest numbers, so short that 80 columns have room for the ETA, too."""
        rates = {n.removesuffix(PER_SECOND): v for n, v in row.items() if n.endswith(PER_SECOND)}
        numbers = (
            f"loss {row['loss']:.4f}  "
            f"{', '.join(f'{value:.0f} {name}s/s' for name, value in rates.items())}  "
            f"data: wait {row['data_wait']:.0%}, lost {row['data_lost']:.0%}"
        )
        self._progress.update(self._task, numbers=numbers)
        now = time.monotonic()
        live = self._progress.console.is_terminal or self._progress.console.is_jupyter
        if not live and (self._told is None or now - self._told >= SELDOM):
            self._told = now
            self.message(f"step {row['step']} of {self._progress.tasks[0].total:.0f}: {numbers}")

    def close(self) -> None:
        """Leave the last state of the bar on the screen."""
        self._progress.stop()

    def message(self, text: str) -> None:
        """Print above the bar, as it stands: brackets are no markup, a line of a log is one."""
        self._progress.console.print(text, highlight=False, markup=False, soft_wrap=True)
