"""Width and height of an image from its header: what `decode` would give, without decoding."""

import io

import simplejpeg
from PIL import Image, UnidentifiedImageError

from ..errors import SampleError
from .decode import (
    EXIF,
    EXIF_REACH,
    FORMATS,
    TURNS,
    check_size,
    exif_orientation,
    silence_pillow,
)


def read_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels, upright (EXIF applied).

    A header says nothing about damage behind it: `decode` does.

    Raises:
        SampleError: no known format, a damaged header, or more pixels than are decoded.
    """
    try:
        (width, height), exif = jpeg_header(data) or any_header(data)
    except UnidentifiedImageError as error:  # its own text holds a memory address
        raise SampleError(f"is no readable {', '.join(FORMATS)}") from error
    except Exception as error:  # Pillow raises a dozen kinds on damaged bytes
        raise SampleError(f"has no readable header: {error or type(error).__name__}") from error
    check_size(width, height)
    transposed, _, _ = TURNS[exif_orientation(exif)]
    return (height, width) if transposed else (width, height)


def jpeg_header(data: bytes) -> tuple[tuple[int, int], bytes] | None:
    """Size as stored, and the EXIF block; None for other formats and odd JPEGs."""
    if not data.startswith(b"\xff\xd8"):
        return None
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    at = data.find(EXIF, 0, EXIF_REACH)
    return (width, height), b"" if at < 0 else data[at : at + EXIF_REACH]


def any_header(data: bytes) -> tuple[tuple[int, int], bytes]:
    """The same for everything else, by Pillow, which opens without decoding."""
    silence_pillow()
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        # TIFF gives its upright size
        exif = b"" if image.format == "TIFF" else image.info.get("exif", b"")
        return image.size, exif
