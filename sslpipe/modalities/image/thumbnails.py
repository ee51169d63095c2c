"""A sheet of thumbnails with captions: where people would rather look than read."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from ...errors import SampleError
from .decode import decode
from .sheet import LINE, MARGIN

TILE = 128  # pixels of a thumbnail's longer side
LETTERS = 20  # of a caption, so that it stays within its tile


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A picture, or the reason why there is none, above its captions."""

    data: bytes
    captions: tuple[str, ...]


def thumbnails(items: Sequence[Thumbnail], *, columns: int = 8) -> Image.Image:
    """Draw encoded images in rows as one RGB picture; what does not decode is a red tile."""
    columns = min(columns, len(items))
    lines = max(len(item.captions) for item in items)
    width, height = TILE + MARGIN, TILE + lines * LINE + MARGIN
    rows = -(-len(items) // columns)
    canvas = Image.new("RGB", (columns * width + MARGIN, rows * height + MARGIN), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(11)
    for place, item in enumerate(items):
        row, column = divmod(place, columns)
        x, y = MARGIN + column * width, MARGIN + row * height
        canvas.paste(tile(item.data), (x, y))
        for line, text in enumerate(item.captions):
            pen.text((x, y + TILE + line * LINE), shortened(text), fill="black", font=font)
    return canvas


def tile(data: bytes) -> Image.Image:
    """A square with the picture in it."""
    square = Image.new("RGB", (TILE, TILE), "whitesmoke")
    try:
        picture = Image.fromarray(decode(data, size=TILE))
    except SampleError:
        return Image.new("RGB", (TILE, TILE), "red")
    picture.thumbnail((TILE, TILE))
    square.paste(picture, ((TILE - picture.width) // 2, (TILE - picture.height) // 2))
    return square


def shortened(text: str) -> str:
    """The end of a long caption: keys differ there."""
    return text if len(text) <= LETTERS else "..." + text[3 - LETTERS :]
