"""An image by its header, for summaries of a data set."""

from dataclasses import dataclass

from ...errors import SampleError
from .decode import jpeg_orientation
from .headers import explain, jpeg_frame, sniff
from .other_formats import opened, orientation_of

PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
COMPONENTS = {1: "grey", 3: "rgb", 4: "cmyk"}
MODES = {"P": "palette", "PA": "palette", "CMYK": "cmyk", "I": "grey", "F": "grey"}


@dataclass(frozen=True, slots=True)
class Description:
    """What the header of an image file says, before anything is decoded."""

    format: str  # JPEG, PNG, WEBP, AVIF, GIF, TIFF, BMP
    width: int  # pixels, upright
    height: int
    colours: str  # grey, rgb, cmyk, palette
    progressive: bool  # JPEG only


def describe(data: bytes) -> Description:
    """Format, size and colours from the header: nothing is decoded, so damage may stay unseen.

    Raises:
        SampleError: it is no image that `decode` reads.
    """
    frame = jpeg_frame(data) if sniff(data) == "JPEG" else None
    if frame:
        width, height = upright(frame.width, frame.height, jpeg_orientation(data))
        colours = COMPONENTS.get(frame.components, "rgb")
        return Description("JPEG", width, height, colours, frame.marker in PROGRESSIVE)
    try:
        with opened(data) as image:
            width, height = upright(*image.size, orientation_of(image, data))
            return Description(str(image.format), width, height, colours_of(image.mode), False)
    except Exception as error:  # Pillow raises a dozen kinds on damaged bytes
        raise SampleError(explain(data)) from error


def upright(width: int, height: int, orientation: int) -> tuple[int, int]:
    """Width and height after an EXIF orientation was applied; 5 to 8 lie on their side."""
    return (height, width) if orientation > 4 else (width, height)


def colours_of(mode: str) -> str:
    """Pillow's mode as one word."""
    grey = mode.startswith(("1", "L", "I;")) and mode != "LAB"
    return MODES.get(mode, "grey" if grey else "rgb")
