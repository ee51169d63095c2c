"""What packing and verifying know of videos; see `shards.codec.Codec`."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from ...errors import SampleError
from .container import Film, extension_of, first_frame, library, opened, quarter_turns
from .decode import Converter, by_count, extent_of
from .whole import check_elements

TURNED, UNSTEADY, NO_TIMES, ALL_KEYS = 1, 2, 4, 8


class VideoCodec:
    """mp4, webm, mkv and avi, by the rules of `container` and `decode`."""

    modality = "video"
    # as frames are shown and stand upright; rate: frames in 1,000 seconds, on average, 0: not told
    extents = ("frames", "height", "width", "rate")
    flag_bits: Mapping[str, int] = MappingProxyType(
        {
            "turned": TURNED,  # stored on its side or head
            "unsteady": UNSTEADY,  # frames are not evenly spaced in time
            "no_times": NO_TIMES,  # or none that can be relied on: decoded from the beginning
            "all_keys": ALL_KEYS,  # decoding can begin at every frame
        }
    )
    measure = "frames"
    bins = (16, 32, 64, 128, 256, 512, 1024, 4096)
    extensions = frozenset({"mp4", "m4v", "mov", "webm", "mkv", "avi"})
    refused_options: Mapping[str, str] = MappingProxyType(
        {
            "--resize": "videos are not encoded anew; set decode.size in the recipe instead",
            "--dedupe near": "videos have no perceptual hash; use --dedupe exact",
        }
    )
    shrunk_extension = "mp4"

    @property
    def version(self) -> str:
        """The package that counts frames, with its version.

        Raises:
            ExtraError: PyAV is not installed.
        """
        return f"av {library().__version__}"

    def measured(self, extents: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
        """How many frames each video has, (n,): what sizes are told in."""
        return extents[:, 0].astype(np.int64)

    def extension(self, data: bytes) -> str:
        """The extension that the content deserves, one per format: mp4, webm, mkv, avi.

        Raises:
            SampleError: it is none of these formats; says how it begins.
        """
        return extension_of(data)

    def extent(self, data: bytes) -> tuple[int, int, int, int]:
        """Frames, height, width and rate, by all packets and the first frame.

        Raises:
            SampleError: it cannot be opened, or not even one frame decodes.
        """
        with opened(data) as film:
            return extent_of(film)

    def inspect(self, data: bytes) -> tuple[int, int, int, int]:
        """The same, by decoding all frames: none may be missing or damaged.

        Raises:
            SampleError: it does not decode as a whole.
        """
        with opened(data) as film:
            if extension_of(data) in ("mkv", "webm"):
                check_elements(data)
            found, convert = extent_of(film), Converter(None)
            for _, frame in by_count(film, range(film.frames)):
                convert(frame)
            return found

    def flags(self, data: bytes) -> int:
        """Which bits of `flag_bits` a video has; 0 if it does not decode."""
        try:
            with opened(data) as film:
                return flags_of(film)
        except SampleError:
            return 0

    def shrink(self, data: bytes, *, side: int, quality: int) -> bytes:
        """Refuse: videos are not encoded anew.

        Raises:
            SampleError: always.
        """
        raise SampleError(f"--resize: {self.refused_options['--resize']}")

    def perceptual_hash(self, data: bytes) -> int:
        """Refuse: similar videos are not found.

        Raises:
            SampleError: always.
        """
        raise SampleError(self.refused_options["--dedupe near"])


def flags_of(film: Film) -> int:
    """What an index says of an open file."""
    bits = {
        TURNED: quarter_turns(first_frame(film)) != 0,
        UNSTEADY: not film.steady,
        NO_TIMES: film.times_N is None,
        ALL_KEYS: film.key_frames == len(film.packets),
    }
    return sum(bit for bit, holds in bits.items() if holds)
