"""What packing and verifying know of recordings; see `shards.codec.Codec`."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from ...errors import SampleError
from .recordings import EXTENSIONS, LOSSY, checked, extension_of, header_of, opened

LOSSY_FLAG = 1


class AudioCodec:
    """WAV, FLAC, Ogg Vorbis, Opus and MP3, by the rules of `recordings`."""

    modality = "audio"
    extents = ("frames", "rate", "channels")  # frames: samples of one channel; rate: of a second
    flag_bits: Mapping[str, int] = MappingProxyType({"lossy": LOSSY_FLAG})
    measure = "duration, ms"
    bins = (250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000)
    extensions = frozenset({*EXTENSIONS.values(), "oga"})
    refused_options: Mapping[str, str] = MappingProxyType(
        {
            "--resize": "recordings are not encoded anew; leave it out",
            "--dedupe near": "recordings have no perceptual hash; use --dedupe exact",
            "--fps": "recordings have no frames of pictures; leave it out",
        }
    )
    shrunk_extension = "flac"
    version = "audio 1"

    def measured(self, extents: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
        """The milliseconds of each recording, rounded up; 0 where they are not known."""
        frames, rates = extents[:, 0].astype(np.int64), extents[:, 1].astype(np.int64)
        return np.where(rates > 0, -(-1_000 * frames // np.maximum(rates, 1)), 0)

    def extension(self, data: bytes) -> str:
        """`wav`, `flac`, `ogg`, `opus` or `mp3`.

        Raises:
            SampleError: it is none of these, or cut.
        """
        with opened(data) as sound:
            return extension_of(sound)

    def extent(self, data: bytes) -> tuple[int, int, int]:
        """Frames, rate and channels by the header, which agrees with the size of the file.

        Raises:
            SampleError: it is no recording, or cut.
        """
        return header_of(data)

    def inspect(self, data: bytes) -> tuple[int, int, int]:
        """The same, and that as many samples decode; of floating point, that they are numbers.

        Raises:
            SampleError: they do not.
        """
        return checked(data)

    def flags(self, data: bytes) -> int:
        """LOSSY_FLAG of Ogg Vorbis, Opus and MP3, by the first bytes."""
        try:
            return LOSSY_FLAG if self.extension(data) in LOSSY else 0
        except SampleError:
            return 0

    def shrink(self, data: bytes, *, side: int, quality: int) -> bytes:
        """Refuse: recordings are not resized.

        Raises:
            SampleError: always.
        """
        raise SampleError("recordings are not resized; leave --resize out")

    def perceptual_hash(self, data: bytes) -> int:
        """Refuse: similar recordings are not found.

        Raises:
            SampleError: always.
        """
        raise SampleError("recordings have no perceptual hash; use --dedupe exact")
