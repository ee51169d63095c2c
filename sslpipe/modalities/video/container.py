"""A video file, opened: its packets and what they say, before anything is decoded.

The rules, the same for every reader of the data:

- mp4 (and mov), webm, mkv, avi; the content decides the format, not the name; nothing else that
  FFmpeg reads is opened, so no playlist in disguise makes it read other files;
- of several video streams the first; pictures of an album's cover are none;
- frames are counted as the packets that are shown, in the order of their times: what a header says
  of their number or of a rate is not believed;
- packets without times, and those of AVI, which has none where frames are reordered, are counted as
  the decoder gives them; such a file is decoded from its beginning (flag `no_times`);
- the file must be all there, no packet of it marked as damaged, and the tables of an mp4 must
  not contradict each other (mp4_tables.py).

The packets of a file are listed when it is opened, 4 us each, so nothing need be kept of its key
frames in an index. Letters: N frames, in the order in which they are shown.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import ExtraError, SampleError
from .mp4_tables import check_mp4_tables
from .whole import check_whole

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

I64 = npt.NDArray[np.int64]
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")  # an mp4's first
PICTURES = (b"avif", b"heic", b"heix", b"mif1")  # brands of boxes that hold a picture, no video
# nothing is decoded on opening: of an mp4 FFmpeg learns no more by it, and it takes 0.8 of 1.1 ms
UNPROBED = MappingProxyType({"skip_frame": "all", "probesize": "32"})
TOLD = frozenset({"hevc", "vp8", "vp9", "av1", "libdav1d"})  # each frame says where it belongs
MAX_FRAMES = 2**24  # float32, in which parameters are told, counts no further


@dataclass(frozen=True, slots=True)
class Film:
    """An open file. `packets` are those of its video stream, in the order of the file."""

    container: InputContainer
    stream: VideoStream
    packets: list[Packet]
    times_N: I64 | None  # when frames are shown, in ticks, rising; None: not told
    frames: int  # N

    @property
    def rate(self) -> int:
        """Frames in 1,000 seconds, on average; 0: not known.

        The header's where it fits even times, which mkv rounds to milliseconds; else theirs.
        """
        said = self.stream.average_rate
        header = float(said) if said else 0.0
        if self.times_N is None or self.frames < 2 or not self.stream.time_base:
            return round(1000 * header)
        seconds = float((self.times_N[-1] - self.times_N[0]) * self.stream.time_base)
        measured = (self.frames - 1) / seconds
        fits = self.steady and abs(header - measured) <= 0.01 * measured
        return round(1000 * (header if fits else measured))

    @property
    def steady(self) -> bool:
        """Whether frames follow each other evenly, but for the rounding of times."""
        gaps = np.diff(self.times_N) if self.times_N is not None else np.zeros(0)
        return len(gaps) == 0 or bool(np.ptp(gaps) <= 1)

    @property
    def key_frames(self) -> int:
        """How many packets decoding can begin at."""
        return sum(packet.is_keyframe for packet in self.packets)


@contextmanager
def opened(data: bytes) -> Iterator[Film]:
    """Open a video file; what FFmpeg raises inside becomes a SampleError too.

    Raises:
        SampleError: it is none of ours, cut, damaged or without frames; the reason, without place.
        ExtraError: PyAV is not installed.
    """
    av, kind = library(), extension_of(data)
    check_whole(data, kind)
    try:
        film = film_of(data, UNPROBED if kind == "mp4" else {})
        if kind == "mp4" and not knows_order(film):
            film.container.close()
            film = film_of(data, {})
        with film.container:
            if kind == "mp4":
                check_mp4_tables(data, film.stream.id, film.frames)
            yield film
    except av.error.FFmpegError as error:
        words = str(error).partition("] ")[2].partition(":")[0] or type(error).__name__
        raise SampleError(f"is a cut or damaged {kind} file: {words.lower()}") from error


def film_of(data: bytes, options: Mapping[str, str]) -> Film:
    """Open a video file; what FFmpeg cannot open raises its error."""
    options = {"format_whitelist": FORMATS, **options}
    container = library().open(io.BytesIO(data), options=options, metadata_errors="replace")
    try:
        return listed(container)
    except BaseException:
        container.close()
        raise


def knows_order(film: Film) -> bool:
    """Whether the decoder gives frames in the order of showing though none was tried before.

    H.264 need not say how far frames are reordered, and a decoder that was not told guesses by
    what it has decoded; the tables of an mp4 mostly tell it.
    """
    context, times = film.stream.codec_context, [packet.pts for packet in film.packets]
    if context.name in TOLD or (context.name == "h264" and context.has_b_frames):
        return True
    return None not in times and all(first < second for first, second in pairwise(times))


def library() -> Any:
    """PyAV, imported.

    Raises:
        ExtraError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise ExtraError(
            'video is decoded by PyAV, which is not installed; pip install "sslpipe[video]"'
        ) from error
    return av


def extension_of(data: bytes) -> str:
    """The extension that the first bytes deserve: mp4, webm, mkv, avi.

    Raises:
        SampleError: it is no video of ours.
    """
    if data[:4] == b"\x1aE\xdf\xa3":
        return "webm" if b"webm" in data[:64] else "mkv"
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "avi"
    if data[4:8] == b"ftyp" and data[8:12] in PICTURES:
        raise SampleError(f"is a picture ({data[8:12].decode()}), no video; pack it as an image")
    if data[4:8] in BOXES:
        return "mp4"
    if not data:
        raise SampleError("is empty")
    raise SampleError(f"is no mp4, webm, mkv or avi file: it begins with {bytes(data[:12])!r}")


def listed(container: InputContainer) -> Film:
    """The packets of the first video stream that is no cover.

    Raises:
        SampleError: there is none, no frame, or a damaged packet.
    """
    cover = library().stream.Disposition.attached_pic
    streams = [s for s in container.streams.video if not s.disposition & cover]
    if not streams:
        others = {s.type for s in container.streams if s not in container.streams.video}
        covers = ["a cover"] if container.streams.video else []
        kinds = ", ".join([*sorted(others), *covers])
        raise SampleError(f"has no video stream, only {kinds or 'nothing'}")
    stream = streams[0]
    if stream.codec_context is None:
        raise SampleError("is of a codec that FFmpeg does not decode; convert it, say to h264")
    stream.codec_context.thread_count = 1  # the workers are as many as there are cores
    if stream.codec_context.name == "mjpeg":  # else it shows what is left of a damaged picture
        stream.codec_context.options = {"err_detect": "explode"}
    stream.codec_context.open(strict=False)  # now: dav1d keeps what it is told to skip by then
    packets = [packet for packet in container.demux(stream) if packet.size]
    shown = [packet for packet in packets if not packet.is_discard]  # an edit list leaves some out
    if any(packet.is_corrupt for packet in packets):
        raise SampleError("is damaged: its container marks packets as corrupt")
    if not shown:
        raise SampleError("has no frame that is all there: it is cut or damaged; get it anew")
    if len(shown) >= MAX_FRAMES:
        raise SampleError(f"has {len(shown):,} frames; {MAX_FRAMES - 1:,} at most are read")
    return Film(container, stream, packets, times(stream, shown), len(shown))


def times(stream: VideoStream, shown: list[Packet]) -> I64 | None:
    """When the frames of packets are shown, rising; None where that is not told, or not surely."""
    if stream.container.format.name == "avi" and stream.codec_context.has_b_frames:
        return None
    told = [packet.pts for packet in shown if packet.pts is not None]
    times_N = np.unique(np.array(told, dtype=np.int64))
    return times_N if len(times_N) == len(shown) else None


def key_frames(film: Film) -> tuple[list[int], I64]:
    """Where packets lie that decoding can begin at, and the numbers of their frames, rising."""
    assert film.times_N is not None
    keys = [
        (int(np.searchsorted(film.times_N, packet.pts)), place)
        for place, packet in enumerate(film.packets)
        if packet.is_keyframe and packet.pts is not None
    ]
    keys.sort()
    return [place for _, place in keys], np.array([number for number, _ in keys], dtype=np.int64)


def first_frame(film: Film) -> VideoFrame:
    """The first frame that the decoder gives: it says how pixels are stored and turned.

    Raises:
        SampleError: there is none.
    """
    film.stream.codec_context.flush_buffers()
    for packet in (*film.packets, None):
        for frame in film.stream.codec_context.decode(packet):
            film.stream.codec_context.flush_buffers()
            return frame
    raise SampleError(f"decodes to 0 of its {film.frames:,} frames")


def quarter_turns(frame: VideoFrame) -> int:
    """By how many quarters, 0 to 3, a stored frame is turned left to stand upright."""
    return int(round(frame.rotation / 90) % 4)


def upright_sides(frame: VideoFrame) -> tuple[int, int]:
    """Height and width of a frame that stands upright."""
    sides = frame.height, frame.width
    return sides[::-1] if quarter_turns(frame) % 2 else sides
