"""What packing and verifying need to know about images; see `shards.plan.Codec`."""

from importlib.metadata import version

import numpy as np
import simplejpeg
from PIL import Image

from .decode import decode, header

MARKS = {"jpg": b"\xff\xd8", "png": b"PNG", "webp": b"WEBP", "bmp": b"BM", "gif": b"GIF8"}


class ImageCodec:
    """JPEG, PNG, WebP, BMP, TIFF and GIF, by the rules of `decode`."""

    extensions = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif"})
    shrunk_extension = "jpg"

    @property
    def version(self) -> str:
        """The packages that make the pixels of `shrink`, with their versions."""
        return ", ".join(f"{name} {version(name)}" for name in ("torch", "simplejpeg", "pillow"))

    def extension(self, data: bytes) -> str:
        """The extension of the content's format."""
        return next((ext for ext, mark in MARKS.items() if mark in data[:12]), "tif")

    def perceptual_hash(self, data: bytes) -> int:
        """64 bits: whether each cell of an 8 x 9 grid is brighter than the one on its right.

        Raises:
            SampleError: it does not decode.
        """
        grey = Image.fromarray(decode(data, size=64)).convert("L")
        grid = np.asarray(grey.resize((9, 8), Image.Resampling.BOX))
        bits = np.packbits(grid[:, :-1] > grid[:, 1:])
        return int.from_bytes(bits.tobytes(), "big")

    def header(self, data: bytes) -> tuple[int, int]:
        """Width and height in pixels, by the file's header: nothing is decoded.

        Raises:
            SampleError: it is no image that `decode` takes.
        """
        return header(data)

    def inspect(self, data: bytes) -> tuple[int, int]:
        """Width and height in pixels, by decoding everything.

        Raises:
            SampleError: it does not decode.
        """
        height, width, _ = decode(data).shape
        return width, height

    def shrink(self, data: bytes, *, side: int, quality: int) -> bytes:
        """Re-encode as baseline 4:2:0 JPEG, upright, shorter side at most `side` pixels.

        Raises:
            SampleError: it does not decode.
        """
        pixels = decode(data, size=side)
        jpeg: bytes = simplejpeg.encode_jpeg(
            pixels, quality=quality, colorspace="RGB", colorsubsampling="420", fastdct=False
        )
        return jpeg
