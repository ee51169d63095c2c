"""Frames of a video to one uint8 array, in a worker: those that are asked for, and no others.

Decoding begins at the last key frame before a frame that is wanted, goes on until none is wanted
within reach, and jumps to the next. Frames are told apart by their place in the order of showing,
which the packets' times give; so the frames of a clip are those that decoding everything gives.
Where times are missing, or do not come out as they should, all is decoded from the beginning.

Frames are made RGB, 8 bits, upright, as FFmpeg converts them; a frame's own colour matrix and range
are followed. Pixels are taken for square, fields of interlaced videos stay together, transparency
is left out. A frame that the decoder could only patch up is an error, also where it is merely on
the way to one that is wanted; and so is another size. That is no proof: codecs have no checksums,
and of single wrong bytes most decode to wrong pixels without a word. Those of an index find them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import groupby, zip_longest
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from ...device.buffers import Buffers, Memory
from ...errors import SampleError
from .. import Raw
from ..image.decode import shrunk
from ..image.headers import check_size
from .container import Film, first_frame, key_frames, library, opened, quarter_turns, upright_sides

if TYPE_CHECKING:
    from av import Packet, VideoFrame

    from ...stream.reader import Sample

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
ALL = -1  # in place of a frame's number: no frame; no numbers at all: all frames
Numbered = tuple[int, "VideoFrame"]


class ClipDecode:
    """`decode(sample, numbers)` -> (T, H, W, 3) uint8: the frames of those numbers, which rise.

    size: a shorter side above it is shrunk to it (bicubic, by FFmpeg), as images are; None: never.
    Without numbers, padded with -1, all frames are decoded. The extent is that of the whole video,
    at the size of the array: frames, height, width, frames in 1,000 seconds. Safe in threads.
    """

    def __init__(self, size: int | None) -> None:
        self.size = size
        self._buffers = Buffers()

    def __reduce__(self) -> tuple[type[ClipDecode], tuple[int | None]]:
        """Workers have buffers of their own."""
        return type(self), (self.size,)

    def extent(self, sample: Sample) -> tuple[int, ...]:
        """Frames, height, width and rate, upright; the first frame is decoded for it.

        What cannot be opened has none: the decoder says why.
        """
        try:
            with opened(sample.data) as film:
                return extent_of(film)
        except SampleError:
            return 0, 0, 0, 0

    def room(self, *, extents: I64, sizes: I64, instructions: I64) -> I64:
        """Bytes of the frames of each sample, (B,); 0 where the index does not know its sides."""
        asked_B = (instructions != ALL).sum(1)
        frames_B = np.where(asked_B, asked_B, extents[:, 0])
        bytes_B: I64 = 3 * frames_B * shrunk_sides(extents[:, 1:3], self.size).prod(1)
        return bytes_B

    def __call__(
        self, sample: Sample, instructions: Sequence[int], memory: Memory | None = None
    ) -> Raw:
        """Decode one sample.

        Raises:
            SampleError: the reason, without the place; also where the index says another number
                of frames.
            ExtraError: PyAV is not installed.
        """
        with opened(sample.data) as film:
            if sample.extent[0] not in (0, film.frames):
                raise SampleError(
                    f"has {film.frames:,} frames, and {sample.extent[0]:,} in its index; index "
                    "the set anew"
                )
            numbers = [n for n in instructions if n != ALL] or list(range(film.frames))
            frames_THWC = decode_frames(film, numbers, self.size, memory or self._buffers)
            height, width = frames_THWC.shape[1:3]
            return Raw(frames_THWC, (film.frames, height, width, film.rate))


def shrunk_sides(sides_B2: I64, size: int | None) -> I64:
    """Heights and widths of frames as they are decoded, `shrunk` of each: (B, 2)."""
    if size is None:
        return sides_B2
    least_B1 = np.maximum(sides_B2.min(1, keepdims=True), 1)
    made_B2 = np.maximum(np.rint(sides_B2 * (size / least_B1)), size).astype(np.int64)
    return np.where(least_B1 <= size, sides_B2, made_B2)


def extent_of(film: Film) -> tuple[int, int, int, int]:
    """Frames, height and width upright, and frames in 1,000 seconds.

    Raises:
        SampleError: no frame decodes, or frames are too large.
    """
    height, width = upright_sides(first_frame(film))
    check_size(width, height)
    return film.frames, height, width, film.rate


def decode_frames(film: Film, numbers: Sequence[int], size: int | None, memory: Memory) -> U8:
    """The frames of these rising numbers, (T, H, W, 3)."""
    convert = Converter(size)
    out: U8 | None = None
    for place, (_, frame) in enumerate(numbered(film, numbers)):
        pixels_HWC = convert(frame)
        if out is None:
            out = memory.empty((len(numbers), *pixels_HWC.shape), np.uint8)
        out[place] = pixels_HWC
    assert out is not None
    return out


class Converter:
    """Frames of one video to upright RGB; FFmpeg's tables for it are made once."""

    def __init__(self, size: int | None) -> None:
        av = library()
        self._size, self._stored = size, (0, 0)
        self._reformat = av.video.reformatter.VideoReformatter()
        self._ways = av.video.reformatter.Interpolation

    def __call__(self, frame: VideoFrame) -> U8:
        """(H, W, 3) uint8; its memory is the frame's, or FFmpeg's.

        Raises:
            SampleError: the frame is too large, or of another size than those before.
        """
        sides = frame.height, frame.width
        if self._stored not in ((0, 0), sides):
            raise SampleError(
                f"changes its size from {self._stored[1]} x {self._stored[0]} to {sides[1]} x "
                f"{sides[0]} px; cut it there"
            )
        self._stored = sides
        check_size(frame.width, frame.height)
        height, width = shrunk(*sides, self._size)
        way = self._ways.BILINEAR if (height, width) == sides else self._ways.BICUBIC
        # threads: FFmpeg would start one for each core
        rgb = self._reformat.reformat(
            frame, width=width, height=height, format="rgb24", interpolation=way, threads=1
        )
        (plane,) = rgb.planes
        pixels = np.ndarray((height, width, 3), np.uint8, plane, strides=(plane.line_size, 3, 1))
        return np.rot90(pixels, quarter_turns(frame))


def numbered(film: Film, numbers: Sequence[int]) -> Iterator[Numbered]:
    """The frames of these rising numbers with them, by jumps to key frames if times are told.

    Raises:
        SampleError: there are fewer frames than packets.
    """
    left = list(numbers)
    if film.times_N is not None:
        for number, frame in by_times(film, numbers):
            if number != left[0]:
                break
            yield left.pop(0), frame
    if left:  # no times, or others than the packets'
        yield from by_count(film, left)


def by_count(film: Film, numbers: Sequence[int]) -> Iterator[Numbered]:
    """Frames by their numbers, counted as the decoder gives them from the beginning.

    Raises:
        SampleError: it gives fewer than the container says.
    """
    wanted, context, found = set(numbers), film.stream.codec_context, -1
    context.skip_frame = "DEFAULT"
    context.flush_buffers()
    for packet in (*film.packets, None):
        for frame in context.decode(packet):
            found += 1
            check_sound(frame, found)
            if found in wanted:
                yield found, frame
            if found == numbers[-1]:
                return
    raise SampleError(f"decodes to {found + 1:,} of its {film.frames:,} frames")


def by_times(film: Film, numbers: Sequence[int]) -> Iterator[Numbered]:
    """The same, from the last key frame before each; ends early where one does not come."""
    assert film.times_N is not None
    times_T = film.times_N[list(numbers)].tolist()
    flow = Flow(film, frozenset(times_T))
    for stretch in stretches(film, numbers, times_T):
        flow.reach(stretch)
        for number, time in stretch.wanted:
            frame = flow.frame_at(time, number)
            if frame is None:
                return
            yield number, frame


class Stretch(NamedTuple):
    """Frames that are decoded from one key frame on. Places are those of packets."""

    begin: int  # of the key frame
    end: int  # behind the last packet that is needed
    wanted: list[tuple[int, int]]  # numbers and times of frames, rising


def stretches(film: Film, numbers: Sequence[int], times_T: Sequence[int]) -> list[Stretch]:
    """From where to where packets are decoded for these frames; ends before one that has no key.

    A stretch whose packets go on behind the next key frame, as those of open groups do, has no end
    of its own: what it leaves in the decoder is needed.
    """
    places, ranks = key_frames(film)
    run_T = (np.searchsorted(ranks, np.array(numbers), side="right") - 1).tolist()
    place_of = {packet.pts: place for place, packet in enumerate(film.packets)}
    runs = groupby(zip(run_T, numbers, times_T, strict=True), key=itemgetter(0))
    grouped = {run: [(number, time) for _, number, time in group] for run, group in runs}
    found: list[Stretch] = []
    for run, following in zip_longest(grouped, [*grouped][1:]):
        if run < 0:  # frames before the first key frame
            break
        end = 1 + max(place_of[time] for _, time in grouped[run])
        joined = following is not None and places[following] <= end
        found.append(Stretch(places[run], len(film.packets) if joined else end, grouped[run]))
    return found


class Flow:
    """Frames as they come out of the decoder, which is set forward to key frames.

    wanted: when the frames that are wanted are shown. Others are left out where nothing is made
    from them, which of most videos is a half: it takes a quarter off the time of every fourth
    frame. At the end of a stretch the decoder is asked for what it holds, which else would come
    with the next packets alone: that takes another tenth off.
    """

    def __init__(self, film: Film, wanted: frozenset[int]) -> None:
        self._context, self._packets = film.stream.codec_context, film.packets
        self._wanted = wanted
        self._next, self._end = -1, 0  # the packet to be decoded next; where packets end
        self._begin = 0  # when the key frame is shown
        self._ready: deque[VideoFrame] = deque()

    def reach(self, stretch: Stretch) -> None:
        """Go on with a stretch, whose key frame the decoder may have come by already."""
        emptied = self._next > self._end
        self._end = stretch.end
        if emptied or stretch.begin > self._next:
            self._context.flush_buffers()
            self._ready.clear()
            self._next, self._begin = stretch.begin, self._packets[stretch.begin].pts or 0

    def frame_at(self, time: int, number: int) -> VideoFrame | None:
        """The frame that is shown at a time, in ticks; None: it does not come."""
        while self._ready or self._next <= self._end:
            if not self._ready:
                last = self._next == self._end
                self._ready.extend(self._decoded(None if last else self._packets[self._next]))
                self._next += 1
                continue
            frame = self._ready.popleft()
            if frame.pts is None or frame.pts > time:
                return None
            if frame.pts >= self._begin:  # those before lean on frames that are not decoded
                check_sound(frame, number)
            if frame.pts == time:
                return frame
        return None

    def _decoded(self, packet: Packet | None) -> list[VideoFrame]:
        """What the decoder gives for a packet; None: what it still holds."""
        needed = packet is None or packet.pts in self._wanted
        self._context.skip_frame = "DEFAULT" if needed else "NONREF"
        return self._context.decode(packet)


def check_sound(frame: VideoFrame, number: int) -> None:
    """Raise a SampleError for a frame that could only be patched up: others may be made from it."""
    if frame.is_corrupt:
        raise SampleError(f"does not decode: frame {number:,}, or one shortly before, is damaged")
