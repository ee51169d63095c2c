"""What all commands show things with: the console, notes on stderr, progress bars, tables."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

ModalityOption = Annotated[
    str, typer.Option(help="What is packed: image, or your own package.module:Thing.")
]
console = Console()
notes = Console(stderr=True)


def write_any_sign() -> None:
    """Let stdout take what its encoding has no sign for, escaped, as Python does with stderr alone.

    So under LANG=C tables are printed, and everywhere keys that are no UTF-8.
    """
    if isinstance(sys.stdout, TextIOWrapper):  # not where a notebook or a test has put its own
        sys.stdout.reconfigure(errors="backslashreplace")


@contextmanager
def bar(unit: str) -> Iterator[Any]:
    """A progress bar on stderr: done, rate and time left."""
    columns = (
        BarColumn(), MofNCompleteColumn(), TextColumn(unit),
        TextColumn("{task.fields[numbers]}"), TextColumn("eta"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=notes) as progress:
        task = progress.add_task(unit, total=None, numbers="")
        try:
            yield lambda **fields: progress.update(task, **fields)
        except BaseException:  # a bar that stands still above an error says nothing
            progress.live.transient = True
            progress.live.stop()
            progress.disable = True  # or it ends its line, which is gone
            raise


@contextmanager
def stopped(words: str) -> Iterator[None]:
    """Say what a Ctrl-C leaves behind, and exit with 130, as shells count it."""
    try:
        yield
    except KeyboardInterrupt:
        notes.print(words, markup=False, highlight=False)
        raise typer.Exit(130) from None


def show_tables(tables: Mapping[str, Mapping[str, str]]) -> None:
    """Draw each table that has rows: names on the left, numbers on the right."""
    for title, rows in tables.items():
        if rows:
            table = Table("", "", title=title, title_justify="left", show_header=False)
            table.columns[1].justify = "right"
            for name, value in rows.items():
                table.add_row(name, value)
            console.print(table)
