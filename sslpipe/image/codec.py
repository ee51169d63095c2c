"""What packing and verifying need to know about images; see `shards.pack.Codec`."""

import simplejpeg

from .decode import decode


class ImageCodec:
    """JPEG, PNG, WebP, BMP, TIFF and GIF, by the rules of `decode`."""

    extensions = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif"})
    shrunk_extension = "jpg"

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
