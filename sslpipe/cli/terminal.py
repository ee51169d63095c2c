"""What all commands show things with: the console, notes on stderr, bars, tables, faults."""

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from types import FrameType
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from typer.core import TyperGroup

from ..errors import SslpipeError
from ..shards.side_files import disk_fault

ModalityOption = Annotated[
    str, typer.Option(help="What it holds: image, text, audio, video, or your pkg.module:Thing.")
]
CLIENTS = ("aiohttp", "aiobotocore", "botocore", "fsspec", "s3fs")  # packages behind URLs
# how torch says that memory is short, or that none has such a tensor; and what stands before it
NO_ROOM = ("can't allocate memory", "Storage size calculation overflowed")
ENFORCED = re.compile(r"^\[enforce fail at [^]]*\] [^.]*\. ")
# how the system says that a library is not loaded for lack of memory
NOT_LOADED = ("failed to map segment", "cannot allocate memory")
# how numpy begins to say that no memory has such an array, however much there were
TOO_LARGE = ("array is too big", "Maximum allowed")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# files with functions that C calls, and whose exceptions it drops
SWALLOWING = re.compile(r"^<frozen importlib\._bootstrap|/llvmlite/binding/executionengine\.py$")
STOPPED = "stopped; run the same command again"
NARROW, USUAL, PIPED = 40, 80, 200  # columns: what holds no table, a terminal's, a file's


def width_of(stream: TextIO | None, columns: str) -> int | None:
    """How wide tables are drawn; None: as wide as the terminal. `columns`: what COLUMNS says.

    A file has room for every cell, so that what reads a pipe finds it whole. Where COLUMNS is too
    small for any (0, as some shells and containers set it), lines are left to the terminal to wrap.
    """
    if columns.isdigit():
        return USUAL if int(columns) < NARROW else None
    return PIPED if stream is None or not stream.isatty() else None


# names are printed as they are: [b] in one is no style, :x: no picture
console = Console(
    markup=False, emoji=False, width=width_of(sys.stdout, os.environ.get("COLUMNS", ""))
)
notes = Console(
    stderr=True, markup=False, emoji=False,
    width=width_of(sys.stderr, os.environ.get("COLUMNS", "")),
)  # fmt: skip
AGAIN = "stopped; the same command goes on where it stopped"


def write_any_sign() -> None:
    """Let stdout take what its encoding has no sign for, escaped, as Python does with stderr alone.

    So under LANG=C tables are printed, and everywhere keys that are no UTF-8.
    """
    if isinstance(sys.stdout, TextIOWrapper):  # not where a notebook or a test has put its own
        sys.stdout.reconfigure(errors="backslashreplace")


@contextmanager
def bar(unit: str) -> Iterator[Any]:
    """A progress bar on stderr: done, rate and time left."""
    whole = Column(no_wrap=True)  # on a narrow screen the bar alone gives way
    columns = (
        BarColumn(), MofNCompleteColumn(table_column=whole), TextColumn(unit),
        TextColumn("{task.fields[numbers]}"), TextColumn("eta"),
        TimeRemainingColumn(table_column=whole),
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


class Terminated(KeyboardInterrupt):
    """A SIGTERM, which ends a command as Ctrl-C does: what was begun is tidied up."""


def terminate(number: int, frame: FrameType | None) -> None:
    """Handle SIGTERM; a second one ends the process at once.

    Raises:
        Terminated: always, but while a module is imported.
    """
    signal.signal(number, signal.SIG_DFL)
    end_imports(number, frame)
    raise Terminated


def interrupt(number: int, frame: FrameType | None) -> None:
    """Handle Ctrl-C.

    Raises:
        KeyboardInterrupt: always, but while a module is imported.
    """
    end_imports(number, frame)
    raise KeyboardInterrupt


def end_imports(number: int, frame: FrameType | None) -> None:
    """End the process at once if a module is being imported, or numba hands on what it compiled.

    Libraries in C swallow what is raised there: the stop would be lost, or NumPy stay half a module
    that fails later. Little has begun then; what has is left as by a kill, which all else expects.
    """
    while frame is not None:
        if SWALLOWING.search(frame.f_code.co_filename):
            with suppress(OSError):
                os.write(2, f"{STOPPED}\n".encode())
            os._exit(128 + number)
        frame = frame.f_back


@contextmanager
def stopped(words: str) -> Iterator[None]:
    """Say what a Ctrl-C or a SIGTERM leaves behind; exit with 130 or 143, as shells count them."""
    try:
        yield
    except KeyboardInterrupt as error:
        notes.print(words, highlight=False, soft_wrap=True)
        raise typer.Exit(exit_code(error)) from None


def exit_code(error: KeyboardInterrupt) -> int:
    """The exit code of a command that was stopped."""
    return 128 + (signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)


class Stopping(TyperGroup):
    """The commands; one that does not say itself what a stop leaves behind says that it stopped."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was typed."""
        with stopped(STOPPED):
            return super().invoke(ctx)


def adding(update: Any) -> Callable[[float], None]:
    """What is told how much more is done, of a bar that shows the sum."""
    done = [0.0]

    def add(more: float) -> None:
        done[0] += more
        update(completed=done[0])

    return add


def show_tables(tables: Mapping[str, Mapping[str, str]]) -> None:
    """Draw each table that has rows: names on the left, numbers on the right."""
    for title, rows in tables.items():
        if rows:
            table = Table("", "", title=title, title_justify="left", show_header=False)
            table.columns[1].justify = "right"
            for name, value in rows.items():
                table.add_row(name, value)
            console.print(table)


def is_memory(error: Exception) -> bool:
    """Whether memory is short: Python's word for it, or those of torch, which has two."""
    kind, words = type(error).__name__, str(error)
    if isinstance(error, RuntimeError):
        return kind == "OutOfMemoryError" or any(said in words for said in NO_ROOM)
    return isinstance(error, MemoryError) or (
        isinstance(error, ValueError) and words.startswith(TOO_LARGE)
    )


def printable(text: str) -> str:
    """A text on one line: a line feed, or what else steers a terminal, in a name is written out."""
    return CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def say_line(text: str) -> None:
    """Print a note as it is, on one line, whatever names are in it."""
    notes.print(printable(text), highlight=False, soft_wrap=True)


def say_made(text: str) -> None:
    """Print to stdout what was made, on one line that can be copied, whatever names are in it."""
    console.print(printable(text), highlight=False, soft_wrap=True)


def one_line(error: Exception) -> str | None:
    """What went wrong, where, and what to do, on one line; None: a fault of the program."""
    words = told(error)
    return None if words is None else printable(words)


def told(error: Exception) -> str | None:
    """The words of `one_line`, names as they are."""
    if isinstance(error, SslpipeError):
        return f"{type(error).__name__}: {error}"
    if type(error).__module__.partition(".")[0] in CLIENTS:
        words = " ".join(str(error).split()) or type(error).__name__
        return f"a store does not answer as it should ({words}); check URL, keys and network"
    if isinstance(error, ImportError) and any(said in str(error).lower() for said in NOT_LOADED):
        return f"memory: {error}: none is left to load it; raise the limit (ulimit -v) or free some"
    if is_memory(error):
        said = ENFORCED.sub("", str(error)).partition(". ")[0]
        words = " ".join(said.split()) or "none is left"
        return f"memory: {words}; make batches, views or the model smaller"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        words = f"{error.filename}: {error.strerror}"
        return words if ";" in words else f"{words}; check the path, its rights and free space"
    fault = error if isinstance(error, OSError) and error.errno else disk_fault(error)
    if fault is not None:
        return f"{fault.strerror}; check the rights and the free space of the outputs"
    return None
