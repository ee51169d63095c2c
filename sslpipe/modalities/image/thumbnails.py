"""A sheet of thumbnails with captions: where people would rather look than read."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from ...errors import SampleError
from .decode import decode
from .sheet import LINE, MARGIN

TILE = 128  # pixels of a thumbnail's longer side
LETTERS = 20  # of a caption, so that it stays within its tile


def thumbnails(items: Sequence[tuple[bytes, Sequence[str]]], *, columns: int = 8) -> Image.Image:
    """Draw encoded images above their captions, in rows; what does not decode is a red tile."""
    columns = min(columns, len(items))
    lines = max(len(captions) for _, captions in items)
    width, height = TILE + MARGIN, TILE + lines * LINE + MARGIN
    rows = -(-len(items) // columns)
    canvas = Image.new("RGB", (columns * width + MARGIN, rows * height + MARGIN), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(11)
    for place, (data, captions) in enumerate(items):
        row, column = divmod(place, columns)
        x, y = MARGIN + column * width, MARGIN + row * height
        canvas.paste(tile(data), (x, y))
        for line, text in enumerate(captions):
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
