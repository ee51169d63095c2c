"""The planned crops of a recording, in a worker: no torch, no draws, nothing decoded in vain.

A sample becomes (N,) int16: the views of all groups, one behind the other, each as long as its
crop says. 16-bit files stay as they are, at their own rate; anything else is scaled by 32,768,
rounded half away from zero, and clipped. Nothing is dithered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import ExtraError, SampleError
from .. import Raw
from .crop import ClipSlot, SoundCrop, slots_of
from .recordings import Header, header_of, opened, read_sound

if TYPE_CHECKING:
    import soundfile

    from ...device.buffers import Memory
    from ...stream.reader import Sample

I64 = npt.NDArray[np.int64]
I16 = npt.NDArray[np.int16]
F32 = npt.NDArray[np.float32]
SCALE = 32_768
QUALITY = "HQ"  # of soxr: 20 bits, with a linear phase
# samples of the lower rate on each side of a crop that are resampled with it: what is made of white
# noise is then, but for 1 of 32,768, what resampling the whole recording makes; with 64 it is 8
MARGIN = 160


class WaveDecode:
    """`decode(sample, words)` -> (N,) int16, a crop for each word; see `SoundCrop.start`.

    crops: of each view group, with the number of its views. What overlaps is decoded once. A word
    below 0 asks for nothing: zeros stand in its place.
    """

    def __init__(self, crops: Sequence[tuple[SoundCrop, int]]) -> None:
        self.slots = slots_of(crops)
        self.size = sum(slot.crop.size for slot in self.slots)

    def extent(self, sample: Sample) -> tuple[int, ...]:
        """Frames, rate and channels, by the header."""
        return header_of(sample.data)

    def room(self, *, extents: I64, sizes: I64, instructions: I64) -> I64:
        """Bytes of each array, (B,): the same of all."""
        return np.full_like(sizes, self.size * np.dtype(np.int16).itemsize)

    def __call__(
        self, sample: Sample, instructions: Sequence[int], memory: Memory | None = None
    ) -> Raw:
        """Decode the crops; as extent, frames, rate and channels of the whole recording.

        Raises:
            SampleError: as `recordings.opened`; also its header is not as the index says.
        """
        out = memory.empty((self.size,), np.int16) if memory else np.empty(self.size, np.int16)
        wanted = [
            (slot, word) for slot, word in zip(self.slots, instructions, strict=False) if word >= 0
        ]
        if len(wanted) < len(self.slots):
            out.fill(0)
        with opened(sample.data) as sound:
            header = Header(sound.frames, sound.samplerate, sound.channels)
            promised = tuple(sample.extent[:3])
            if any(promised) and promised != header:
                raise SampleError(
                    f"has frames, rate, channels {tuple(header)}, where the index promises "
                    f"{promised}; index the set anew"
                )
            spans = [span_of(slot, word, header) for slot, word in wanted]
            if len(spans) == 1 and is_stored_so(sound, header, wanted[0][0].crop):
                fill(out, wanted[0][0], sound, *spans[0])
                return Raw(out, tuple(header))
            ranges = [(lo, read_sound(sound, lo, hi - lo)) for lo, hi in merged_ranges(spans)]
        for (slot, word), (lo, hi) in zip(wanted, spans, strict=True):
            first, whole = next(each for each in ranges if 0 <= lo - each[0] < len(each[1]))
            part = mono(whole[lo - first : hi - first], slot.crop)
            view = clip(slot.crop, part, lo, int(word), header)
            out[slot.at : slot.at + slot.crop.size] = view
        return Raw(out, tuple(header))


def is_stored_so(sound: soundfile.SoundFile, header: Header, crop: SoundCrop) -> bool:
    """Whether views are samples as they are stored, so that nothing but decoding is left to do."""
    stored = sound.subtype == "PCM_16" and header.channels == 1 and header.rate == crop.rate
    return stored and crop.short == "pad"


def fill(out: I16, slot: ClipSlot, sound: soundfile.SoundFile, lo: int, hi: int) -> None:
    """Decode samples `lo` to `hi` where their view is wanted, with zeros behind them."""
    view = out[slot.at : slot.at + slot.crop.size]
    read_sound(sound, lo, hi - lo, view[: hi - lo, None])
    view[hi - lo :] = 0


def span_of(slot: ClipSlot, word: int, header: Header) -> tuple[int, int]:
    """The samples that a view is made of, from and to, with those that resampling looks at."""
    crop, (frames, rate, _) = slot.crop, header
    start = int(crop.start(word, frames, rate))
    lead, tail = (0, 0) if rate == crop.rate else margins(rate, crop.rate, start)
    return start - lead, min(frames, start + crop.needed(rate) + tail)


def margins(rate: int, wanted: int, start: int) -> tuple[int, int]:
    """Samples before and behind a crop that are resampled with it.

    Those before are a number after which both rates have a sample at the same time, so that the
    grid of what is made begins at `start`.
    """
    period = rate // math.gcd(rate, wanted)
    tail = math.ceil(MARGIN * max(rate, wanted) / wanted)
    return min(start // period, -(-tail // period)) * period, tail


def merged_ranges(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges [lo, hi) in order, those that overlap or touch made one."""
    out: list[tuple[int, int]] = []
    for lo, hi in sorted(spans):
        if out and lo <= out[-1][1]:
            out[-1] = out[-1][0], max(out[-1][1], hi)
        else:
            out.append((lo, hi))
    return out


def mono(part_TC: npt.NDArray[Any], crop: SoundCrop) -> npt.NDArray[Any]:
    """One channel of a part, (T,): int16 as it is stored, or float32 at its scale of 1."""
    if part_TC.shape[1] == 1 or crop.channels == "first":
        return part_TC[:, 0]
    mean: npt.NDArray[Any] = part_TC.mean(1, dtype=np.float64)
    return (mean / (SCALE if part_TC.dtype == np.int16 else 1)).astype(np.float32)


def clip(crop: SoundCrop, part: npt.NDArray[Any], lo: int, word: int, header: Header) -> I16:
    """A view of its part, which begins at sample `lo` of the recording: (size,) int16."""
    start = int(crop.start(word, header.frames, header.rate))
    if header.rate != crop.rate:
        part = resampled(part, header.rate, crop.rate)
        part = part[(start - lo) * crop.rate // header.rate :]
    samples = quantised(part[: crop.size])
    if len(samples) == crop.size:
        return samples
    if crop.short == "repeat" and len(samples):
        return np.resize(samples, crop.size)
    return np.pad(samples, (0, crop.size - len(samples)))


def resampled(part: npt.NDArray[Any], rate: int, wanted: int) -> F32:
    """A part at another rate, float32."""
    import soxr

    if part.dtype == np.int16:
        part = part.astype(np.float32) / SCALE
    made: F32 = soxr.resample(part, rate, wanted, quality=QUALITY)
    return made


def resampler() -> str:
    """What resamples, and its version.

    Raises:
        ExtraError: it is not installed.
    """
    try:
        return f"soxr {version('soxr')} {QUALITY}"
    except PackageNotFoundError as error:
        raise ExtraError("audio: soxr is not installed; pip install 'sslpipe[audio]'") from error


def quantised(part: npt.NDArray[Any]) -> I16:
    """Samples as int16: scaled, rounded half away from zero, clipped."""
    if part.dtype == np.int16:
        return part
    scaled = part.astype(np.float64) * SCALE
    rounded = np.trunc(scaled + np.copysign(0.5, scaled))
    return np.clip(rounded, -SCALE, SCALE - 1).astype(np.int16)
