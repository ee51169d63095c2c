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

import math

import numpy as np
import numpy.typing as npt
import simplejpeg

from ...device.buffers import Buffers, Memory
from ...errors import SampleError
from . import jpeg
from .headers import check_scans, check_size, turns_in_jpeg

Pixels = npt.NDArray[np.uint8]

# EXIF orientation -> transpose first?, then step over rows and columns
TURNS = {
    1: (False, 1, 1), 2: (False, 1, -1), 3: (False, -1, -1), 4: (False, -1, 1),
    5: (True, 1, 1), 6: (True, 1, -1), 7: (True, -1, -1), 8: (True, -1, 1),
}  # fmt: skip


def decode(
    data: bytes,
    *,
    size: int | None = None,
    factor: int = 1,
    buffers: Memory | None = None,
    guess: tuple[int, int] = (0, 0),
    box: jpeg.Box = jpeg.WHOLE,
) -> Pixels:
    """Decode to (H, W, 3) uint8 RGB, C-contiguous, by the rules of this module.

    size: a shorter side above it is shrunk to it (antialiased bicubic); never enlarged.
    factor: without a size, a JPEG is decoded at 1/1, 1/2, 1/4 or 1/8; see `scale`.
    buffers: where pixels of JPEGs go; new memory costs 0.2 ms of 1.3 at 500 x 375.
    guess: the height and width that it may have, as an index says: if they are right its header is
    read once.
    box: of the pixels that are wanted if the guess is right, and no size shrinks them.

    Raises:
        SampleError: the reason, without the place, which only the caller knows.
    """
    memory = buffers or Buffers()
    try:
        found = decode_plain(data, size, factor, guess, memory, box)
        pixels, orientation = found or decode_jpeg(data, size, factor, memory) or decode_other(data)
        pixels = shrink(pixels, size)
        return pixels if orientation == 1 else turn(pixels, orientation)
    except SampleError:
        raise
    except Exception as error:  # Pillow raises a dozen kinds on damaged bytes
        raise SampleError(f"does not decode: {error or type(error).__name__}") from error


def decode_plain(
    data: bytes,
    size: int | None,
    factor: int,
    sides: tuple[int, int],
    buffers: Memory,
    box: jpeg.Box = jpeg.WHOLE,
) -> tuple[Pixels, int] | None:
    """What `decode_jpeg` gives, of a plain JPEG of these sides that is not shrunk; else None."""
    height, width = sides
    factor = scale_factor(min(sides), size) if size else factor
    if factor > 1 or not 0 < height * width <= jpeg.MOST:
        return None
    pixels = buffers.empty((height, width, 3), np.uint8)
    if not jpeg.decode(data, pixels, box):
        return None
    orientation = jpeg_orientation(data) if jpeg.may_turn() else 1
    if orientation != 1 and box != jpeg.WHOLE:  # it is a box of the upright picture
        jpeg.decode(data, pixels)
    return pixels, orientation


def decode_jpeg(
    data: bytes, size: int | None, factor: int, buffers: Memory
) -> tuple[Pixels, int] | None:
    """The fast way: pixels and orientation; None for CMYK, odd samplings and other formats.

    Pixels may be shrunk already, by `scale_factor`.
    """
    plain = jpeg.look(data)
    sides = plain or stored_sides(data)
    if sides is None:
        return None
    height, width = sides
    check_size(width, height)
    if plain:
        found = decode_plain(data, size, factor, plain, buffers)
        if found:
            return found
    else:
        check_scans(data)
    factor = scale_factor(min(sides), size) if size else factor
    height, width = math.ceil(height / factor), math.ceil(width / factor)
    pixels = buffers.empty((height, width, 3), np.uint8)
    # strict: else libjpeg makes grey of what is cut off; fast flags change pixels for nothing
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
    told = turns_in_jpeg(data)
    if not told:
        return 1  # at once: Pillow takes 45 us
    from .other_formats import orientation_in

    return orientation_in(told)


def decode_other(data: bytes) -> tuple[Pixels, int]:
    """All else, by Pillow: pixels and orientation. Who sees JPEGs alone does not wait for it."""
    from .other_formats import decode_any

    return decode_any(data)


def scale_factor(shorter: int, size: int) -> int:
    """By how much libjpeg may shrink while it decodes (8, 4, 2 or 1): to twice `size` or more.

    It leaves out high frequencies of each block: 12 megapixels to 512 px take 43 ms instead of 63.
    The rest is shrunk with antialias, which then still decides what the picture looks like (0.25
    levels off; at `size` itself 0.46, for 38 ms). Where the factor does not divide a side, its last
    block sticks out: a stretch of under half a pixel. Other factors have no vector code.
    """
    return next((factor for factor in (8, 4, 2) if shorter // factor >= 2 * size), 1)


def shrink(pixels: Pixels, size: int | None) -> Pixels:
    """Shorter side to `size` pixels, never up; antialiased bicubic, as torch does it on uint8.

    By Pillow: torch gives the same picture, most of one level apart, in a third of the time (photos
    to 160 px: 0.29 ms against 0.82 ms), but every worker would take 2 s and 500 MB to import it.
    """
    target = shrunk(pixels.shape[0], pixels.shape[1], size)
    if target == pixels.shape[:2]:
        return pixels
    from PIL import Image

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
