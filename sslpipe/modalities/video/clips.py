"""Which frames a clip has: pure functions of the keys of samples, and of how long videos are.

A sampling is the first op of a video group, and gives all its clips one length. Its frames are
numbers in the order of showing; they are known before anything is decoded, so that only they need
be. A view's clip is drawn with the view's key, so that several views are several clips.

Letters: V views, B samples, T frames of a clip. `lengths_B`: frames of each video, 1 or more;
`rates_B`: its frames per second, 0 where not known.

A sampling of your own: save this as `mine.py` and write `- "mine:Ends": {frames: 8}` first.

```py
from dataclasses import dataclass

import numpy as np

from sslpipe.modalities.video.clips import ClipSampling


@dataclass(frozen=True, kw_only=True)
class Ends(ClipSampling):  # the first frames of a video, or its last ones
    def draw(self, keys, stream, lengths_B, rates_B):
        last_VB = keys.uniforms(stream, 1)[..., 0] < 0.5
        start_VB = np.where(last_VB, np.maximum(lengths_B - self.frames, 0), 0)
        numbers_VBT = start_VB[..., None] + np.arange(self.frames)
        return np.minimum(numbers_VBT, lengths_B[:, None] - 1)  # (V, B, T) int64
```
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from ...rng import Keys

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
TRIES = 100  # draws of clips whose gaps are wrong, as in SlowFast's code


MOST = 65_536  # frames of a clip, or from one of them to the next


@dataclass(frozen=True, kw_only=True)
class ClipSampling:
    """What all samplings are told; abstract."""

    frames: int  # of a clip
    stride: int = 1  # frames of the video from one to the next
    # names of ops that are drawn for each frame anew; all others are alike in all frames of a clip
    per_frame: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, number in (("frames", self.frames), ("stride", self.stride)):
            if not 1 <= number <= MOST:
                raise ValueError(f"{name} = {number:,} must be 1 to {MOST:,}")

    @property
    def span(self) -> int:
        """Frames of a video that a clip takes up, the stride behind its last one included."""
        return self.frames * self.stride

    def check_count(self, count: int) -> None:
        """Raise a ValueError if it does not suit so many views."""

    def draw(self, keys: Keys, stream: str, lengths_B: I64, rates_B: F64) -> I64:
        """Draw (V, B, T) numbers of frames, each below the length of its video."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class DenseClip(ClipSampling):
    """Every stride-th frame from a random one on (VideoMAE, arXiv:2203.12602).

    `_sample_train_indices` and what follows it in kinetics.py: the start is uniform in 0 to
    D - frames * stride, and 0 where D is less. Of a short video the last frame that is reached is
    repeated; since the official code counts from 1, the very last frame of a video is out of reach.
    Several views are the repeated sampling of VideoMAE v2.
    """

    def draw(self, keys: Keys, stream: str, lengths_B: I64, rates_B: F64) -> I64:
        """Draw where clips start, (V, B, T); a shorter video repeats a late frame."""
        starts_VB = whole(keys.uniforms(stream, 1)[..., 0], lengths_B - self.span + 1)
        reach_VB = np.maximum(lengths_B - 2 - starts_VB, 0) // self.stride
        steps_VBT = np.minimum(np.arange(self.frames), reach_VB[..., None])
        numbers_VBT: I64 = starts_VB[..., None] + self.stride * steps_VBT
        return numbers_VBT


@dataclass(frozen=True, kw_only=True)
class UniformClip(ClipSampling):
    """Evenly spaced frames from a random time on (TimeSformer and SlowFast, decoder.py).

    The start is a real number in [0, D - span), frames lie from it to start + span - 1 and are
    rounded down; beyond the end the last one is repeated. With `rate`, spans are those of a video
    of so many frames per second: officially 30.

    Several views are the clips of rho-MoCo (arXiv:2104.14558). gap: least and most frames from
    the end of a clip to the start of the next, both in the order of time. All clips of a sample are
    drawn together until they suit, 100 times; then those that miss it least are taken. (SlowFast's
    code draws them one by one, each up to 100 times.)
    """

    rate: float | None = None  # frames per second; None: strides are in frames
    gap: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rate is not None and self.rate <= 0:
            raise ValueError(f"rate = {self.rate} must be above 0")
        if self.gap is not None and self.gap[0] > self.gap[1]:
            raise ValueError(f"gap = {list(self.gap)} must rise")

    def draw(self, keys: Keys, stream: str, lengths_B: I64, rates_B: F64) -> I64:
        """Draw where clips start, with gaps as asked, and round to frames: (V, B, T)."""
        ratio_B = np.ones(len(lengths_B))
        if self.rate is not None:
            ratio_B = np.where(rates_B > 0, rates_B, self.rate) / self.rate
        spans_B = np.maximum(self.span * ratio_B, 1)
        room_B = np.maximum(lengths_B - spans_B, 0)
        if self.gap is None:
            starts_VB = keys.uniforms(stream, 1)[..., 0] * room_B
        else:
            starts_VB = spaced(keys.uniforms(stream, TRIES) * room_B[:, None], spans_B, self.gap)
        steps_T = np.arange(self.frames) / max(self.frames - 1, 1)
        at_VBT = starts_VB[..., None] + (spans_B[:, None] - 1) * steps_T
        return clamped(np.floor(at_VBT).astype(np.int64), lengths_B)


@dataclass(frozen=True, kw_only=True)
class PartitionedClips(ClipSampling):
    """A clip out of each of `count` equal parts of a video (V-JEPA 2, arXiv:2506.09985).

    `loadvideo_decord` of video_dataset.py, clips that do not overlap: a stride of
    ceil(frames per second) // rate, a uniform window of a part, in it evenly spaced frames rounded
    down; a part that is no longer than a clip gives evenly spaced frames and then repeats its last.
    """

    rate: int | None = 4  # frames per second; None, or where a video's is not known: by `stride`

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rate is not None and self.rate < 1:
            raise ValueError(f"rate = {self.rate} must be 1 or more")

    def draw(self, keys: Keys, stream: str, lengths_B: I64, rates_B: F64) -> I64:
        """Draw the window of each part; part v is that of view v."""
        strides_B = np.full(len(lengths_B), self.stride)
        if self.rate is not None:
            by_rate_B = np.ceil(rates_B).astype(np.int64) // self.rate
            strides_B = np.where(rates_B > 0, np.maximum(by_rate_B, 1), strides_B)
        parts_B, spans_B = lengths_B // len(keys.views), self.frames * strides_B
        starts_VB = whole(keys.uniforms(stream, 1)[..., 0], parts_B - spans_B)
        steps_T = np.arange(self.frames) / max(self.frames - 1, 1)
        inside_BT = np.minimum((spans_B[:, None] * steps_T), spans_B[:, None] - 1).astype(np.int64)
        long_VBT = starts_VB[..., None] + inside_BT
        short_BT = evenly_filled(parts_B, strides_B, self.frames)
        within_VBT = np.where((parts_B > spans_B)[:, None], long_VBT, short_BT)
        return clamped(within_VBT + keys.views[:, None, None] * parts_B[:, None], lengths_B)


@dataclass(frozen=True, kw_only=True)
class IntervalClips(ClipSampling):
    """Two clips, short intervals between them more often than long ones (CVRL, arXiv:2008.03800).

    `sample_ssl_sequence` of video_ssl_preprocess_ops.py: of the M = D - (frames - 1) * stride
    starts that there are, the interval t has the distribution 2 (t/M) - (t/M)^2 (mean M/3), the
    first start is uniform among the M - t, and either clip may come first. Videos that are too
    short give two starts of their own, and frames go on at the beginning.
    """

    def check_count(self, count: int) -> None:
        """Raise a ValueError: an interval has two ends."""
        if count != 2:
            raise ValueError(f"it makes two clips, and the group makes {count}; set its count to 2")

    def draw(self, keys: Keys, stream: str, lengths_B: I64, rates_B: F64) -> I64:
        """Draw interval, first start, another one, and the order."""
        u_B4 = replace(keys, views=np.zeros(1, dtype=np.int64)).uniforms(stream, 4)[0]
        starts_B = lengths_B - (self.frames - 1) * self.stride
        long_B = (starts_B > 0) & (starts_B < lengths_B)  # officially M = D counts as too short
        most_B = np.where(long_B, starts_B, lengths_B)
        apart_B = np.floor(most_B * (1 - np.sqrt(1 - u_B4[:, 0]))).astype(np.int64)
        first_B = whole(u_B4[:, 1], np.where(long_B, most_B - apart_B, most_B))
        second_B = np.where(long_B, first_B + apart_B, whole(u_B4[:, 2], most_B))
        turned_B = u_B4[:, 3] < 0.5
        pair_2B = np.where(turned_B, [second_B, first_B], [first_B, second_B])
        starts_VB = pair_2B[keys.views]
        numbers_VBT: I64 = starts_VB[..., None] + self.stride * np.arange(self.frames)
        return numbers_VBT % lengths_B[:, None]


@dataclass(frozen=True, kw_only=True)
class CentralClip(ClipSampling):
    """Every stride-th frame about the middle of a video; nothing is random. For evaluation.

    Beyond the end the last frame is repeated.
    """

    def draw(self, keys: Keys, stream: str, lengths_B: I64, rates_B: F64) -> I64:
        """Lay the same clip out for every view."""
        reach = self.span - self.stride + 1
        start_B = np.maximum(lengths_B - reach, 0) // 2
        numbers_BT = clamped(start_B[:, None] + self.stride * np.arange(self.frames), lengths_B)
        return np.broadcast_to(numbers_BT, (len(keys.views), *numbers_BT.shape)).copy()


@dataclass(frozen=True, kw_only=True)
class ShuffledClip(CentralClip):
    """The frames of CentralClip in an order drawn for each sample: the control of what reads time.

    What is still told of such clips is told by single frames.
    """

    def draw(self, keys: Keys, stream: str, lengths_B: I64, rates_B: F64) -> I64:
        """Draw an order of the same frames."""
        numbers_VBT = super().draw(keys, stream, lengths_B, rates_B)
        order_VBT = keys.words(stream, self.frames).argsort(-1, kind="stable")
        return np.take_along_axis(numbers_VBT, order_VBT, -1)


CLIPS: Mapping[str, type[ClipSampling]] = MappingProxyType(
    {
        kind.__name__: kind
        for kind in (
            CentralClip,
            DenseClip,
            IntervalClips,
            PartitionedClips,
            ShuffledClip,
            UniformClip,
        )
    }
)


def whole(u_VB: F64, counts_B: I64) -> I64:
    """Uniforms made whole numbers from 0 to count - 1; 0 where the count is none."""
    numbers: I64 = np.floor(u_VB * np.maximum(counts_B, 1)).astype(np.int64)
    return numbers


def clamped(numbers_BT: I64, lengths_B: I64) -> I64:
    """Numbers (..., B, T) kept within their videos."""
    return np.clip(numbers_BT, 0, lengths_B[:, None] - 1)


def evenly_filled(parts_B: I64, strides_B: I64, frames: int) -> I64:
    """(B, T): as many even steps as strides fit a part, then its last frame again and again."""
    steps_B = parts_B // strides_B
    places_T = np.arange(frames)
    even_BT = parts_B[:, None] * places_T / np.maximum(steps_B - 1, 1)[:, None]
    filled_BT = np.where(places_T < steps_B[:, None], even_BT, parts_B[:, None])
    return np.clip(filled_BT.astype(np.int64), 0, np.maximum(parts_B - 1, 0)[:, None])


def spaced(starts_VBA: F64, spans_B: F64, gap: tuple[float, float]) -> F64:
    """Of A draws of starts the first with gaps in a range, or the least wrong one: (V, B)."""
    ordered_VBA = np.sort(starts_VBA, axis=0)
    gaps_VBA = ordered_VBA[1:] - (ordered_VBA[:-1] + spans_B[:, None] - 1)
    misses_VBA = np.maximum(gap[0] - gaps_VBA, 0) + np.maximum(gaps_VBA - gap[1], 0)
    best_B = misses_VBA.sum(0).argmin(-1)
    return np.take_along_axis(starts_VBA, best_B[None, :, None], -1)[..., 0]
