"""Which samples of a recording a view is made of: known to deciders and workers alike; no torch.

Letters: V views, B samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
Whole = Any  # int, or an array of them: what is computed is the same
LONGEST = 2**26  # samples of a view: 70 minutes at 16 kHz


@dataclass(frozen=True, kw_only=True)
class SoundCrop:
    """The first op of a group: `seconds` or `samples` at `rate`, cut out before anything is heard.

    A view begins at one of the recording's own samples, all alike likely, drawn by the keys of
    sample and view. place: `centre` and `start` draw nothing. short: what becomes of a recording
    that is not long enough, which is taken whole: `pad` puts zeros behind it, and Batch.lengths
    says how much is real; `repeat` plays it again. channels: their mean, taken before anything that
    is not linear, or the first one alone (Kaldi's and so AudioMAE's rule).

    So all views of a group are equally long, whatever their neighbours in the batch are; with
    `stream.bucket` zeros behind the longest of a batch are cut off again, which changes no sample.
    fairseq crops a batch to its shortest recording, so a crop depends on others. `place: start`
    with `short: pad` is Whisper's rule. align: views begin at a multiple of so many samples at
    `rate`, at which the frames begin that labels of frames are of.
    """

    rate: int  # samples per second that recordings are brought to
    seconds: float | None = None
    samples: int | None = None
    place: Literal["random", "centre", "start"] = "random"
    short: Literal["pad", "repeat"] = "pad"
    channels: Literal["mean", "first"] = "mean"
    align: int = 1

    def __post_init__(self) -> None:
        if not 1_000 <= self.rate <= 768_000:
            raise ValueError(f"rate = {self.rate}; it is 1,000 to 768,000 samples a second")
        if (self.seconds is None) == (self.samples is None):
            raise ValueError("say how long views are: either seconds or samples")
        if self.align < 1:
            raise ValueError(f"align = {self.align}; it is 1 sample or more")
        if not 1 <= self.size <= LONGEST:
            raise ValueError(f"views of {self.size:,} samples; they have 1 to {LONGEST:,}")

    @property
    def size(self) -> int:
        """Samples of a view, at `rate`."""
        if self.samples is not None:
            return self.samples
        assert self.seconds is not None
        return round(self.seconds * self.rate) if np.isfinite(self.seconds) else 0

    def needed(self, rate: Whole) -> Whole:
        """How many samples of a recording at another rate a view takes."""
        return -(-self.size * rate // self.rate)

    def real(self, frames: Whole, rate: Whole) -> Whole:
        """How many samples of a view are no padding: 1 to `size`."""
        if self.short == "repeat":
            return 0 * frames + self.size
        made = (2 * frames * self.rate + rate) // (2 * rate)  # rounded, as resampling does
        return np.clip(made, 1, self.size)

    def start(self, word: Whole, frames: Whole, rate: Whole) -> Whole:
        """The sample of the recording at which a view begins; word: a random u32.

        Integers throughout: the main process and a worker find the same.
        """
        step = self.step(rate)
        room = np.maximum(frames - self.needed(rate), 0) // step
        if self.place == "random":
            return ((word * (room + 1)) >> 32) * step
        return 0 * word + (room // 2 * step if self.place == "centre" else 0)

    def step(self, rate: Whole) -> Whole:
        """Samples of a recording at another rate from one possible beginning to the next."""
        if self.align == 1:
            return 1
        whole = np.maximum(self.align * rate, 1)  # a rate of 0 is not known yet
        return whole // np.gcd(whole, self.rate)


class ClipSlot(NamedTuple):
    """One view's place in what a worker makes of a sample: `crop.size` int16 from `at` on."""

    crop: SoundCrop
    at: int


def slots_of(crops: Sequence[tuple[SoundCrop, int]]) -> list[ClipSlot]:
    """The places of all views of a sample: of groups in their order, with `count` views each."""
    slots, at = [], 0
    for crop, count in crops:
        for _ in range(count):
            slots.append(ClipSlot(crop, at))
            at += crop.size
    return slots
