"""Image bytes to a uint8 RGB canvas. The rules, the same for every reader of the data:

- the content decides the format, not the name: JPEG, PNG, WebP, AVIF, GIF, TIFF, BMP;
- of an animation the first frame, of a TIFF the first page;
- the orientation in EXIF, else in XMP, is applied; colour profiles are not;
- grey and palette become RGB; CMYK is converted without a profile, Adobe's inverted one included;
- transparency is laid on white;
- 16 bits per channel keep their high byte, as libpng does; 32-bit pixels are refused: their range
  is unknown;
- a truncated or damaged file is refused; what is no image is called by its name;
- above MAX_PIXELS, MAX_SIDE or MAX_SCANS a file is refused by its header, before decoding; so is
  a PNG whose compressed texts inflate beyond Pillow's limit (1 MiB each).
"""

import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile

from ...device.buffers import Buffers, Memory
from ...errors import SampleError
from . import jpeg
from .headers import BASELINE, FORMATS, SCAN, explain, jpeg_frame, texts_first
from .strict import check_whole, libtiff_told

Pixels = npt.NDArray[np.uint8]

MAX_PIXELS = 89_478_485  # Pillow's own warning level: 256 MiB of RGB
MAX_SIDE = 65_535  # what JPEG and the shard index can say
MAX_SCANS = 100  # of a progressive JPEG; common ones have 10, each passes over all pixels
SMALL = 16_384  # bytes
EXIF = b"Exif\0\0"
XMP = b"http://ns.adobe.com/xap/1.0/\0"
APP1, START_OF_SCAN = 0xE1, 0xDA  # JPEG markers
ORIENTATION = 0x0112
SPREAD = {"L;2": 85, "L;4": 17}  # what Pillow multiplies grey of 2 and 4 bits by

# EXIF orientation -> transpose first?, then step over rows and columns
TURNS = {
    1: (False, 1, 1), 2: (False, 1, -1), 3: (False, -1, -1), 4: (False, -1, 1),
    5: (True, 1, 1), 6: (True, 1, -1), 7: (True, -1, -1), 8: (True, -1, 1),
}  # fmt: skip

QUIET = ("ignore", None, Warning, re.compile(r"PIL\."), 0)  # as kept in warnings.filters


def decode(
    data: bytes, *, size: int | None = None, factor: int = 1, buffers: Memory | None = None
) -> Pixels:
    """Decode to (H, W, 3) uint8 RGB, C-contiguous, by the rules of this module.

    size: a shorter side above it is shrunk to it (antialiased bicubic); never enlarged.
    factor: without a size, a JPEG is decoded at 1/1, 1/2, 1/4 or 1/8; see `scale`.
    buffers: where pixels of JPEGs go; new memory costs 0.2 ms of 1.3 at 500 x 375.

    Raises:
        SampleError: the reason, without the place, which only the caller knows.
    """
    try:
        found = decode_jpeg(data, size, factor, buffers or Buffers())
        pixels, orientation = found or decode_any(data)
        return turn(shrink(pixels, size), orientation)
    except SampleError:
        raise
    except UnidentifiedImageError as error:  # its own text holds a memory address
        raise SampleError(explain(data)) from error
    except Image.DecompressionBombError as error:  # above twice our limit Pillow asks first
        raise SampleError(f"{error}; the limit is {MAX_PIXELS:,}") from error
    except Exception as error:  # Pillow raises a dozen kinds on damaged bytes
        raise SampleError(f"does not decode: {error or type(error).__name__}") from error


def decode_jpeg(
    data: bytes, size: int | None, factor: int, buffers: Memory
) -> tuple[Pixels, int] | None:
    """The fast way: pixels and orientation; None for CMYK, odd samplings and other formats.

    Pixels may be shrunk already, by `scale_factor`.
    """
    sides = stored_sides(data)
    if sides is None:
        return None
    height, width = sides
    check_size(width, height)
    check_scans(data)
    # strict: else libjpeg makes grey of what is cut off; fast flags change pixels for nothing
    factor = scale_factor(min(height, width), size) if size else factor
    height, width = math.ceil(height / factor), math.ceil(width / factor)
    pixels = buffers.empty((height, width, 3), np.uint8)
    if factor == 1 and jpeg.decode(data, pixels):
        return pixels, jpeg_orientation(data)
    pixels = simplejpeg.decode_jpeg(
        data, "RGB", fastdct=False, fastupsample=False, strict=True, min_height=height,
        min_width=width, min_factor=factor, buffer=pixels,
    )  # fmt: skip
    return pixels, jpeg_orientation(data)


def stored_sides(data: bytes) -> tuple[int, int] | None:
    """Height and width, before any turn, of a JPEG that takes the fast way; None: it does not."""
    if not data.startswith(b"\xff\xd8"):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return None if colours in ("CMYK", "YCCK") else (height, width)


def jpeg_orientation(data: bytes) -> int:
    """Orientation 1..8 of a JPEG, from the EXIF and XMP segments before its first scan."""
    if len(data) < SMALL and EXIF not in data and XMP not in data:
        return 1  # a look at all of it is quicker than ten segments
    at, exif, xmp = 2, b"", b""
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != START_OF_SCAN:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if data[at + 1] == APP1 and data.startswith(EXIF, at + 4):
            exif += data[at + 4 + len(EXIF) : end]  # a long one goes on in a second segment
        elif data[at + 1] == APP1 and data.startswith(XMP, at + 4):
            xmp = data[at + 4 + len(XMP) : end]
        at = end if data[at + 1] != 0xFF else at + 1  # a marker may stand after fill bytes
    if not exif and b"Orientation" not in xmp:
        return 1  # at once: Pillow takes 45 us
    return orientation_in({"exif": exif, "xmp": xmp})


def scale_factor(shorter: int, size: int) -> int:
    """By how much libjpeg may shrink while it decodes (8, 4, 2 or 1): to twice `size` or more.

    It leaves out high frequencies of each block: 12 megapixels to 512 px take 43 ms instead of 63.
    The rest is shrunk with antialias, which then still decides what the picture looks like (0.25
    levels off; at `size` itself 0.46, for 38 ms). Where the factor does not divide a side, its last
    block sticks out: a stretch of under half a pixel. Other factors have no vector code.
    """
    return next((factor for factor in (8, 4, 2) if shorter // factor >= 2 * size), 1)


def decode_any(data: bytes) -> tuple[Pixels, int]:
    """Everything else, by Pillow, and as strictly as the fast way: pixels and orientation."""
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
        return jpeg_orientation(data)
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
    return value if isinstance(value, int) and value in TURNS else 1


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


def check_size(width: int, height: int) -> None:
    """Raise a SampleError for more pixels than are read, in all or on a side."""
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise SampleError(
            f"{width:,} x {height:,} pixels; the limits are {MAX_PIXELS:,} pixels in all "
            f"and {MAX_SIDE:,} a side"
        )


def check_scans(data: bytes) -> None:
    """Raise a SampleError for a small JPEG that takes minutes: thousands of scans of big ones."""
    frame = jpeg_frame(data) if data.startswith(b"\xff\xd8") else None
    if frame is None or frame.marker == BASELINE:  # most; counting takes 80 us of 94 kB
        return
    scans = data.count(SCAN)
    if scans > MAX_SCANS:
        raise SampleError(f"has {scans:,} scans; the limit is {MAX_SCANS}")


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


def shrink(pixels: Pixels, size: int | None) -> Pixels:
    """Shorter side to `size` pixels, never up; antialiased bicubic, as torch does it on uint8.

    By Pillow: torch gives the same picture, most of one level apart, in a third of the time (photos
    to 160 px: 0.29 ms against 0.82 ms), but every worker would take 2 s and 500 MB to import it.
    """
    target = shrunk(pixels.shape[0], pixels.shape[1], size)
    if target == pixels.shape[:2]:
        return pixels
    return np.array(Image.fromarray(pixels).resize(target[::-1], Image.Resampling.BICUBIC))


def shrunk(height: int, width: int, size: int | None) -> tuple[int, int]:
    """Height and width that `shrink` gives a picture, in pixels."""
    if size is None or min(height, width) <= size:
        return height, width
    scale = size / min(height, width)
    return max(size, round(height * scale)), max(size, round(width * scale))


def turn(pixels: Pixels, orientation: int) -> Pixels:
    """Turn and mirror pixels as an EXIF orientation, 1 to 8, says."""
    transpose, rows, columns = TURNS[orientation]
    upright = pixels.swapaxes(0, 1) if transpose else pixels
    return np.ascontiguousarray(upright[::rows, ::columns])
