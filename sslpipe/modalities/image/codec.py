"""What packing and verifying need to know about images; see `shards.codec.Codec`."""

from importlib.metadata import version

import numpy as np
import numpy.typing as npt
import simplejpeg

from ...errors import SampleError
from .decode import check_size, decode, jpeg_orientation
from .describe import Description, describe
from .hashing import SIDE, perceptual_hash
from .headers import BASELINE, FORMATS, Frame, explain, jpeg_frame, sniff

GPU_JPEG = 1  # flag of an index: GPU decoders take it, a baseline JPEG of three components


class ImageCodec:
    """JPEG, PNG, WebP, AVIF, GIF, TIFF and BMP, by the rules of `decode`."""

    modality = "image"
    extents = ("height", "width")  # pixels of the upright image
    flag_bits = {"gpu_jpeg": GPU_JPEG}  # noqa: RUF012 - a constant
    measure = "shorter side, px"
    bins = (64, 128, 256, 384, 512, 768, 1024, 2048)
    extensions = frozenset({*FORMATS.values(), "jpeg", "jfif", "tiff"})
    shrunk_extension = "jpg"

    @property
    def version(self) -> str:
        """The packages that make the pixels of `shrink` and the hashes, with their versions."""
        return ", ".join(f"{name} {version(name)}" for name in ("torch", "simplejpeg", "pillow"))

    def extension(self, data: bytes) -> str:
        """The extension that the content deserves, one per format: jpg, png, webp, avif ...

        Raises:
            SampleError: it is none of these formats; says what it is instead.
        """
        name = sniff(data)
        if name is None:
            raise SampleError(explain(data))
        return FORMATS[name]

    def measured(self, extents: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
        """The shorter side of each image, in pixels."""
        return np.minimum(extents[:, 0], extents[:, 1]).astype(np.int64)

    def inspect(self, data: bytes) -> tuple[int, int]:
        """Height and width in pixels, by decoding everything.

        Raises:
            SampleError: it does not decode.
        """
        height, width, _ = decode(data).shape
        return height, width

    def extent(self, data: bytes) -> tuple[int, int]:
        """Height and width in pixels as `inspect` finds them, by the header: nothing is decoded.

        Raises:
            SampleError: it is no image that `decode` reads, or too large for it.
        """
        said = describe(data)
        check_size(said.width, said.height)
        return said.height, said.width

    def flags(self, data: bytes) -> int:
        """GPU_JPEG where it is one, by the header."""
        return GPU_JPEG if baseline_frame(data) else 0

    def describe(self, data: bytes) -> Description:
        """What the header says.

        Raises:
            SampleError: it is no image that `decode` reads.
        """
        return describe(data)

    def shrink(self, data: bytes, *, side: int, quality: int) -> bytes:
        """A baseline JPEG, upright, shorter side at most `side` pixels; `data` if it is that.

        Else it is re-encoded with 4:2:0 chroma. Encoding anew what fits would only lose quality.

        Raises:
            SampleError: it does not decode.
        """
        pixels = decode(data, size=side)
        if fits(data, side):
            return data
        jpeg: bytes = simplejpeg.encode_jpeg(
            pixels, quality=quality, colorspace="RGB", colorsubsampling="420", fastdct=False
        )
        return jpeg

    def perceptual_hash(self, data: bytes) -> int:
        """The hash of a picture: see `hashing.perceptual_hash`.

        Raises:
            SampleError: it does not decode.
        """
        return perceptual_hash(decode(data, size=2 * SIDE))


def fits(data: bytes, side: int) -> bool:
    """Whether `shrink` has nothing to change: baseline YCbCr, upright, small enough."""
    frame = baseline_frame(data)
    return (
        frame is not None
        and min(frame.width, frame.height) <= side
        and jpeg_orientation(data) == 1
        and simplejpeg.decode_jpeg_header(data)[2] == "YCbCr"
    )


def baseline_frame(data: bytes) -> Frame | None:
    """The frame header of a baseline JPEG of three components; None for anything else."""
    frame = jpeg_frame(data) if sniff(data) == "JPEG" else None
    return frame if frame and (frame.marker, frame.components) == (BASELINE, 3) else None
