"""Ops on spectrograms. Letters: R rows, one for each view of each sample; F, T as in batch.py."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .op import F64, I64, Plain, SoundRows, SoundShape

EPS = torch.finfo(torch.float32).eps
BICUBIC = -0.75  # torch's coefficient of cubic convolution


class OnSpectrograms(Plain):
    """What ops on spectrograms share: they refuse waveforms."""

    def shape(self, before: SoundShape) -> SoundShape:
        """The same, if it is one."""
        before.wanted("CFT")
        return before


@dataclass(frozen=True, kw_only=True)
class NormalizeSound(OnSpectrograms):
    """(x - mean) / std by numbers of the recipe, alike for all samples, `Normalize` in recipes.

    AudioMAE divides by twice the deviation: on AudioSet mean -4.2677393, std 9.1379948; ESC-50
    -6.6268077, 10.717164. Never by the batch's own: a view would depend on its neighbours.
    """

    mean: float
    std: float

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ValueError(f"std = {self.std} must be above 0")

    def apply(self, views: Tensor, rows: SoundRows) -> Tensor:
        """Shift and scale all frames, those of padding too."""
        return (views - self.mean) / self.std


@dataclass(frozen=True, kw_only=True)
class PadFrames(OnSpectrograms):
    """Put zeros behind the frames up to `frames`, or leave out what is more.

    Frames that hold nothing but padding become zero, as if they had never been made: before
    Normalize that is brighter than the mean, as in AST and AudioMAE (0, not silence: log eps).
    """

    frames: int

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise ValueError(f"frames = {self.frames} must be 1 or more")

    def shape(self, before: SoundShape) -> SoundShape:
        """Give all spectrograms `frames` frames."""
        before.wanted("CFT")
        return before._replace(sizes=(*before.sizes[:-1], self.frames))

    def steps(self, real: I64, before: SoundShape) -> I64:
        """Count at most `frames` real frames."""
        return np.minimum(real, self.frames)

    def apply(self, views: Tensor, rows: SoundRows) -> Tensor:
        """Set frames of padding to 0, then cut or pad to `frames`."""
        kept = views * rows.real_steps()[:, None, None]
        return F.pad(kept, (0, self.frames - views.shape[-1]))


@dataclass(frozen=True, kw_only=True)
class SpecAugment(OnSpectrograms):
    """Set bands of mels and of frames to 0, each sample others (arXiv:1904.08779, section 2).

    frequency, time: the widest band, whose width is uniform on 0 to it, and its place where it
    fits. A band of time lies in what is no padding and takes at most the share `most` of it.
    LibriSpeech LD: 27, 100, 2 bands each; without the time warping. Put it behind Normalize.
    """

    frequency: int = 27
    time: int = 100
    frequency_bands: int = 2
    time_bands: int = 2
    most: float = 1.0

    def __post_init__(self) -> None:
        if min(self.frequency, self.time, self.frequency_bands, self.time_bands) < 0:
            raise ValueError("frequency, time and their bands must be 0 or more")
        if not 0 < self.most <= 1:
            raise ValueError(f"most = {self.most} must lie in (0, 1]")

    @property
    def columns(self) -> tuple[str, ...]:  # type: ignore[override]
        """Where each band begins and ends."""
        kinds = ["frequency"] * self.frequency_bands + ["time"] * self.time_bands
        return tuple(f"{kind}{n}_{end}" for n, kind in enumerate(kinds) for end in ("from", "to"))

    @property
    def numbers(self) -> int:  # type: ignore[override]
        """A width and a place for each band."""
        return 2 * (self.frequency_bands + self.time_bands)

    def shape(self, before: SoundShape) -> SoundShape:
        """The same; a band of frequencies is no wider than the view."""
        before.wanted("CFT")
        if self.frequency > before.sizes[1]:
            raise ValueError(f"frequency = {self.frequency} is more than {before.sizes[1]} mels")
        return before

    def draw(self, uniforms_VBN: F64, before: SoundShape, real_VB: I64) -> F64:
        """Ends of each band, (V, B, 2 bands)."""
        u = uniforms_VBN.reshape(*real_VB.shape, -1, 2)
        mels = np.full((*real_VB.shape, self.frequency_bands), before.sizes[1])
        frames = np.repeat(real_VB[..., None], self.time_bands, axis=-1)
        steps = np.concatenate([mels, frames], axis=-1)
        widest = np.concatenate(
            [np.full_like(mels, self.frequency),
             np.minimum(self.time, np.floor(self.most * frames)).astype(np.int64)], axis=-1,
        )  # fmt: skip
        width = np.floor(u[..., 0] * (widest + 1))
        start = np.floor(u[..., 1] * (steps - width + 1))
        return np.stack([start, start + width], axis=-1).reshape(*real_VB.shape, -1)

    def apply(self, views: Tensor, rows: SoundRows) -> Tensor:
        """Set the drawn bands of mels and of frames to 0."""
        ends_RN2 = rows.table_RP.view(len(views), -1, 2)
        shown = [
            ~covered(ends, length).any(1)
            for ends, length in zip(
                ends_RN2.tensor_split([self.frequency_bands], dim=1), views.shape[2:], strict=True
            )
        ]
        return views * (shown[0][:, None, :, None] & shown[1][:, None, None, :])


def covered(ends_RN2: Tensor, length: int) -> Tensor:
    """Which of `length` places lie in each band, (R, N, length)."""
    places = torch.arange(length, device=ends_RN2.device)
    return (places >= ends_RN2[..., :1]) & (places < ends_RN2[..., 1:])


@dataclass(frozen=True, kw_only=True)
class RandomResizeCrop(OnSpectrograms):
    """BYOL-A's crop of a spectrogram, stretched to its size (arXiv:2103.06695, section 3.3).

    nttcslab/byol-a, augmentations.py, RandomResizeCrop: the view lies in the middle of an empty
    canvas `canvas` times as large (frequency, time); a box of a random share of the view's sides is
    cut from it and brought back to the size by bicubic interpolation with aligned corners.
    Deviation: sides are drawn by their own uniform numbers of each view, there for a batch of one.
    """

    canvas: tuple[float, float] = (1.0, 1.5)
    frequency: tuple[float, float] = (0.6, 1.5)
    time: tuple[float, float] = (0.6, 1.5)
    columns = ("top", "left", "height", "width")
    numbers = 4

    def __post_init__(self) -> None:
        if min(self.canvas) < 1:
            raise ValueError(f"canvas = {list(self.canvas)} must be 1 or more each way")
        for name in ("frequency", "time"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} = {[low, high]} must be [from, to], above 0")

    def sides(self, before: SoundShape) -> tuple[tuple[int, int], tuple[int, int]]:
        """Mels and frames of the view and of the canvas."""
        _, mels, frames = before.sizes
        return (mels, frames), (int(mels * self.canvas[0]), int(frames * self.canvas[1]))

    def steps(self, real: I64, before: SoundShape) -> I64:
        """All of them: where sound ends is not the end of a view any more."""
        return np.full_like(real, before.steps)

    def draw(self, uniforms_VBN: F64, before: SoundShape, real_VB: I64) -> F64:
        """Boxes on the canvas, (V, B, 4)."""
        found = [
            self.box(u, share, view, canvas)
            for u, share, view, canvas in zip(
                (uniforms_VBN[..., :2], uniforms_VBN[..., 2:]),
                (self.frequency, self.time), *self.sides(before), strict=True,
            )
        ]  # fmt: skip
        return np.stack([found[0][0], found[1][0], found[0][1], found[1][1]], axis=-1)

    def box(
        self, u_VB2: F64, share: tuple[float, float], view: int, canvas: int
    ) -> tuple[F64, F64]:
        """Where a box begins along one axis, and how long it is."""
        low, high = share
        length = np.clip(np.floor((low + (high - low) * u_VB2[..., 0]) * view), 1, canvas)
        return np.floor(u_VB2[..., 1] * (canvas - length + 1)), length

    def apply(self, views: Tensor, rows: SoundRows) -> Tensor:
        """Two products of matrices for each view: along time, and along frequency."""
        top, left, height, width = rows.table_RP.T
        (mels, frames), canvas = self.sides(rows.before)
        y, x = (canvas[0] - mels) // 2, (canvas[1] - frames) // 2  # of the view on the canvas
        down_RFF = stretch(top - y, height, mels)
        across_RTT = stretch(left - x, width, frames)
        return down_RFF[:, None] @ views @ across_RTT.mT[:, None]


def stretch(start_R: Tensor, length_R: Tensor, size: int) -> Tensor:
    """Weights (R, size, size) of `size` old steps for as many new ones, laid over a box.

    The box may stick out, where there are zeros. Four taps of cubic convolution; those beyond the
    box take its outermost step.
    """
    step = torch.arange(size, device=start_R.device)
    place = step * (length_R[:, None] - 1) / max(size - 1, 1)  # in the box, (R, size)
    first = place.floor()
    taps = torch.arange(-1, 3, device=start_R.device)
    old = (first[..., None] + taps).clamp_min(0)
    old = torch.minimum(old, length_R[:, None, None] - 1) + start_R[:, None, None]
    weights = cubic((place - first)[..., None] - taps)
    weights = weights * ((old >= 0) & (old < size))
    out = torch.zeros(len(start_R), size, size, device=start_R.device)
    return out.scatter_add_(2, old.clamp(0, size - 1).long(), weights)


def cubic(x: Tensor) -> Tensor:
    """Cubic convolution's weight at a distance (Keys 1981)."""
    x, a = x.abs(), BICUBIC
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0.0))
