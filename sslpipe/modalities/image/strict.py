"""What Pillow lets pass or prints, held to what the fast decoder says: the same for every route.

libjpeg warns of damaged scans and goes on with grey; simplejpeg makes an error of it, Pillow does
not. So the scans of what Pillow decodes (CMYK, JPEG in TIFF) are read by simplejpeg too, in their
own colours: of 8,000 damaged JPEGs both ways refused the same. libtiff prints its errors, which
belong to the sample and not on a terminal.

What nobody sees is damage that is a valid code again, for JPEG has no checksum: an index has one.
With three random bytes of a scan of 128 x 96 px, quality 75, so many of 1,000 pass:

    RGB 0.30, at 4:4:4 0.23, in TIFF 0.31, progressive 0.11, with optimized codes 0.59
    grey 0.34       CMYK 0.58, progressive 0.19, with optimized codes 0.58

Optimized codes use all words, and CMYK has no coarser chroma whose blocks would lose their step.
"""

import ctypes
import functools
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import simplejpeg
from PIL import Image

from ...errors import SampleError
from .headers import png_chunks

COMPRESSION, JPEG_TABLES, JPEG_IN_TIFF = 259, 347, 7
PARTS = ((273, 279), (324, 325))  # offsets and bytes: of strips, of tiles
END = b"\xff\xd9"
PILLOWS_NAME = "tempfile.tif"  # for bytes in memory
LONGEST = 500  # letters of what libtiff says

HEARD = threading.local()  # `words`: what libtiff said first in this thread
Handler = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)


def check_jpeg(data: bytes) -> None:
    """Refuse a damaged JPEG; one of an odd sampling, which simplejpeg cannot read, is let through.

    At an eighth of the size: every code of the scans is still read, and few pixels are made.

    Raises:
        ValueError: what libjpeg warns of.
    """
    try:
        colours = simplejpeg.decode_jpeg_header(data)[2]
    except ValueError:
        return
    kind = "CMYK" if colours in ("CMYK", "YCCK") else "RGB"
    simplejpeg.decode_jpeg(data, kind, strict=True, min_height=1, min_width=1, min_factor=8)


def check_whole(image: Image.Image, data: bytes) -> None:
    """Refuse an opened image that lacks what its pixels do not need, or has damaged JPEG scans.

    A PNG must have its end mark; the scans are also those in strips of a TIFF.

    Raises:
        ValueError: what is missing, or what libjpeg warns of.
    """
    if image.format in ("JPEG", "MPO"):
        check_jpeg(data)
    elif image.format == "PNG" and all(kind != b"IEND" for kind, _, _ in png_chunks(data)):
        raise ValueError("the file ends before its end mark (IEND)")
    elif image.format == "TIFF":
        for stream in jpegs_in_tiff(image, data):
            check_jpeg(stream)


def jpegs_in_tiff(image: Image.Image, data: bytes) -> Iterator[bytes]:
    """The JPEGs of the first page's strips or tiles, each with the tables that all share."""
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    if tags.get(COMPRESSION) != JPEG_IN_TIFF:
        return
    tables = bytes(tags.get(JPEG_TABLES) or b"")
    shared = tables[: tables.rfind(END)] if END in tables else b"\xff\xd8"
    for offsets, counts in PARTS:
        for at, size in zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False):
            yield shared + data[at + 2 : at + size]  # without its own start mark


@contextmanager
def libtiff_told() -> Iterator[None]:
    """Turn what libtiff would print into the reason why a sample does not decode.

    Raises:
        SampleError: decoding failed, and libtiff said why.
    """
    listen()
    HEARD.words = ""
    try:
        yield
    except SampleError:
        raise
    except Exception as error:
        if HEARD.words:
            raise SampleError(f"does not decode: {HEARD.words}") from error
        raise


@functools.cache
def listen() -> None:
    """Let libtiff tell us of errors instead of stderr, and Pillow's log have no last resort.

    Its handler is the process's, but is called in the thread that decodes. Where its library is not
    found (it is part of another one, or there is no /proc), it goes on printing.
    """
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    path = loaded_library("libtiff")
    if path:
        ctypes.CDLL(path).TIFFSetErrorHandler(HEAR)


def hear(module: bytes | None, form: bytes, values: int) -> None:
    """Keep the first error of a thread: those after it follow from it."""
    if not getattr(HEARD, "words", ""):
        text = ctypes.create_string_buffer(LONGEST)
        ctypes.CDLL(None).vsnprintf(text, LONGEST, ctypes.c_char_p(form), ctypes.c_void_p(values))
        words = text.value.decode("utf-8", "replace").rstrip(". ")
        place = (module or b"").decode("utf-8", "replace").removeprefix(PILLOWS_NAME)
        HEARD.words = f"{place}: {words}" if place else words


HEAR = Handler(hear)  # kept for ever: libtiff holds its address


def loaded_library(name: str) -> str | None:
    """The path of a shared library that this process has loaded; None: none, or unknown."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(rf"/\S*/{name}[^/\s]*\.so[^/\s]*$", maps, re.MULTILINE)
    return found[0] if found else None
