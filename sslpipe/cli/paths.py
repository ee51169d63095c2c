"""What options must be before work begins: places that can be written, numbers that can be used."""

import io
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer

from ..errors import SslpipeError
from ..shards.side_files import written_whole

if TYPE_CHECKING:
    from PIL import Image


Number = TypeVar("Number", int, float)
# bounds of whole numbers, so that none is beyond what arrays, clocks and libraries take
MANY = 2**48  # of samples, steps, frames
CROWD = 65_536  # of processes, threads
SIDE = 65_535  # pixels of the longest side that a JPEG can have
SEED = 2**32 - 1  # the largest that scikit-learn takes
LARGE = 1e9  # of megabytes, seconds
URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:/")
OF_SETS = ("manifest.json", ".tar", ".tar.idx", ".tar.tok", ".tar.sent")  # ends of names


def check_words(words: Sequence[str]) -> None:
    """Refuse an empty argument, which would be the current folder: a variable that is not set.

    Raises:
        SslpipeError: there is one; says behind which.
    """
    if "" in words:
        before = words[words.index("") - 1] if words[0] else "sslpipe"
        raise SslpipeError(f"{before} '': an argument is empty; write a path or a name, or set it")


def check_current_folder() -> None:
    """Find out whether the folder that we are in still exists: torch ends the process if it is not.

    Raises:
        SslpipeError: it was removed.
    """
    try:
        Path.cwd()
    except FileNotFoundError:
        raise SslpipeError("the current folder was removed; go to another one (cd)") from None


def settings_of(sets: Sequence[str] | None, labels: Path | None = None) -> list[str]:
    """Give what `--set` sets in a recipe, the last of a key last, and `--labels` as one more.

    Raises:
        SslpipeError: both name labels.
    """
    found = list(sets or ())
    if labels is None:
        return found
    for text in found:
        if text.partition("=")[0].strip() == "stream.labels":
            raise SslpipeError(f"--labels {labels}: `--set {text}` names labels, too; keep one")
    return [*found, f"stream.labels={json.dumps(str(labels))}"]


def at_most(most: Number) -> Callable[[Number | None], Number | None]:
    """Give the check of an option that refuses numbers beyond `most`, infinity, and what is none.

    A range would do so, too, but stand in `--help`, where nobody needs a bound of 15 digits; and it
    lets through what is no number.
    """

    def check(value: Number | None) -> Number | None:
        if value is not None and not abs(value) <= most:
            raise typer.BadParameter(f"{value} is beyond what can be used; write one like 64")
        return value

    return check


def here(shards: Path | None) -> Path | None:
    """Refuse a URL where a set on this machine is asked for, which Path would read as a folder.

    Raises:
        SslpipeError: it is one.
    """
    if url := url_of(shards):
        raise SslpipeError(
            f"{url}: is a URL, and a set on this machine is asked for; copy it here, or make an "
            "index of its tars: sslpipe index URL/*.tar --out FOLDER"
        )
    return shards


def url_of(path: Path | None) -> str | None:
    """The URL that was typed, of whose slashes Path has made one; None: it was a path."""
    found = URL.match(str(path))
    return str(path).replace(":/", "://", 1) if found else None


def in_a_folder(out: Path | None) -> Path | None:
    """Check before work begins that a file can be written where it is wanted.

    Raises:
        SslpipeError: its folder does not exist or takes no files, or it is a folder itself.
    """
    if out is None:
        return None
    if not out.parent.is_dir():
        raise SslpipeError(f"{out}: there is no folder {out.parent}; make it, or write elsewhere")
    if out.is_dir():
        raise SslpipeError(f"{out}: is a folder; name a file in it")
    if out.exists() and out.name.endswith(OF_SETS):
        raise SslpipeError(f"{out}: is a part of a packed set; name another file")
    check_writable(out, out if out.exists() else out.parent)
    return out


def exported_folder(out: Path) -> Path:
    """Check before work begins that a folder can be put where it is wanted.

    Raises:
        SslpipeError: the folder above it does not exist, or takes none.
    """
    above = out.resolve().parent
    if not above.is_dir():
        raise SslpipeError(f"{out}: there is no folder {out.parent}; make it, or write elsewhere")
    check_writable(out, above)
    return out


def picture_file(out: Path | None) -> Path | None:
    """Check before work begins that a picture can be written, by writing a small one to memory.

    Raises:
        SslpipeError: no picture format has such a name, or it cannot be written there.
    """
    from PIL import Image

    if out is None:
        return None
    try:
        kind = Image.registered_extensions()[out.suffix.lower()]
        Image.new("RGB", (32, 32)).save(io.BytesIO(), kind)
    except (KeyError, OSError, ValueError):
        raise SslpipeError(
            f"{out}: {out.suffix!r} is no format that pictures are written in; write .png or .jpg"
        ) from None
    return in_a_folder(out)


def save_picture(image: "Image.Image", out: Path) -> None:
    """Write a picture in the format of its name, whole or not at all.

    Raises:
        OSError: the disk is full or the folder closed; it names the file.
    """
    from PIL import Image

    with written_whole(out) as part:
        image.save(part, Image.registered_extensions()[out.suffix.lower()])


def run_folder(out: Path | None) -> Path | None:
    """Check before work begins that a folder can be made, or is there.

    Raises:
        SslpipeError: it is a file, lies in one, or nothing can be written there.
    """
    first = next((p for p in (out, *out.parents) if p.exists()), None) if out else None
    if out and first:
        if not first.is_dir():
            raise SslpipeError(f"{out}: {first} is a file, not a folder; name another folder")
        check_writable(out, first)
    return out


def check_writable(out: Path, there: Path) -> None:
    """Ask the system whether we may write; whether there is room shows only when we do.

    Raises:
        SslpipeError: we may not.
    """
    if not os.access(there, os.W_OK | os.X_OK if there.is_dir() else os.W_OK):
        raise SslpipeError(f"{out}: {there} cannot be written; mend its rights, or write elsewhere")
