"""Pictures that libjpeg does not decode to RGB, by Pillow: the rules at the top of `decode`.

Also how they are turned. Imported where a file asks for it: Pillow takes 15 ms.
"""

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile

from ...errors import SampleError
from .headers import (
    FORMATS,
    MAX_PIXELS,
    check_scans,
    check_size,
    explain,
    texts_first,
    turns_in_jpeg,
)
from .strict import check_whole, libtiff_told

Pixels = npt.NDArray[np.uint8]

ORIENTATION = 0x0112
SPREAD = {"L;2": 85, "L;4": 17}  # what Pillow multiplies grey of 2 and 4 bits by
QUIET = ("ignore", None, Warning, re.compile(r"PIL\."), 0)  # as kept in warnings.filters


def decode_any(data: bytes) -> tuple[Pixels, int]:
    """Decode as strictly as the fast way: (H, W, 3) uint8 RGB as stored, and its orientation.

    Raises:
        SampleError: no image that is read, or larger than what is read.
        Exception: Pillow's, of a dozen kinds: it is damaged.
    """
    try:
        return decode_opened(data)
    except UnidentifiedImageError as error:  # its own text holds a memory address
        raise SampleError(explain(data)) from error
    except Image.DecompressionBombError as error:  # above twice our limit Pillow asks first
        raise SampleError(f"{error}; the limit is {MAX_PIXELS:,}") from error


def decode_opened(data: bytes) -> tuple[Pixels, int]:
    """Check what was opened, and decode it: pixels and orientation."""
    with opened(data) as image, libtiff_told():
        check_size(*image.size)
        check_scans(data)
        check_whole(image, data)
        orientation = 1 if image.format == "TIFF" else orientation_of(image, data)
        clear_HW = keyed_pixels(image, data)
        pixels = np.array(to_rgb(image))
        if clear_HW is not None:
            pixels[clear_HW] = 255
        return pixels, orientation


@contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """An image by its header, without a word from Pillow."""
    silence_pillow()
    with Image.open(io.BytesIO(data), formats=tuple(FORMATS)) as image:
        yield image


def orientation_of(image: Image.Image, data: bytes) -> int:
    """Orientation 1..8 of an image that was opened and not yet decoded.

    Of a TIFF, which Pillow turns upright as it decodes, it is what `image.size` does not know yet.
    """
    if image.format == "TIFF":
        tags = image.getexif()
        return 1 if ORIENTATION in image.tag_v2 else known_turn(tags.get(ORIENTATION))  # type: ignore[attr-defined]
    if data.startswith(b"\xff\xd8"):
        return orientation_in(turns_in_jpeg(data))
    moved = texts_first(data) if image.format == "PNG" else None
    if moved is None:
        return orientation_in(image.info)
    try:
        with opened(moved) as whole:
            return orientation_in(whole.info)
    except Exception:  # of damaged texts, those before the pixels are known to be good
        return orientation_in(image.info)


def orientation_in(info: Mapping[Any, Any]) -> int:
    """Orientation 1..8 in EXIF, raw profiles of PNGs or XMP, as Pillow finds it; 1 if damaged."""
    holder = Image.Image()
    holder.info = {name: value for name, value in info.items() if value}
    silence_pillow()
    try:
        return known_turn(holder.getexif().get(ORIENTATION))
    except Exception:  # Pillow raises a dozen kinds on damaged bytes
        return 1


def known_turn(value: Any) -> int:
    """An orientation that is one; 1 in place of anything else."""
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def keyed_pixels(image: Image.Image, data: bytes) -> npt.NDArray[np.bool_] | None:
    """Where a PNG has its transparent colour, before it is decoded; None if it names none.

    Colours are compared as they are stored: Pillow compares a key of 2, 4 or 16 bits with pixels
    of 8, and so clears others or none. The key is taken out of `image.info`.
    """
    keyed = image.mode in ("1", "L", "I;16", "RGB") and "transparency" in image.info
    if not isinstance(image, PngImageFile) or not keyed or not image.tile:
        return None
    key, stored = np.array(image.info.pop("transparency")), str(image.tile[0].args)
    levels = np.asarray(image.convert("L") if image.mode == "1" else image)
    if stored in SPREAD:
        levels, key = levels // SPREAD[stored], key & 255 // SPREAD[stored]
    elif stored == "RGB;16B":
        with PngImageFile(io.BytesIO(data)) as low:  # the bytes that Pillow leaves out
            low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]
            levels = levels.astype(np.uint16) << 8 | np.asarray(low)
    same = np.equal(levels, key)
    return np.asarray(same.all(axis=2) if same.ndim == 3 else same)


def silence_pillow() -> None:
    """Ignore Pillow's warnings about metadata: `python -W` must not decide which samples are good.

    `warnings.catch_warnings` would undo it afterwards, but is not safe in threads.
    """
    if QUIET not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB by the rules of this module.

    Raises:
        SampleError: pixels of 32 bits, whose range nobody knows.
    """
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise SampleError("32-bit pixels have no known range; convert them to 8 or 16 bits")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")
