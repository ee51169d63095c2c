"""Ops on waveforms. Padding stays zero."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ...device.buffers import Memory
from .op import F64, I64, Plain, SoundRows, SoundShape


@dataclass(frozen=True, kw_only=True)
class Gain:
    """Make a view louder or quieter by a factor that is drawn for it.

    factor: from, to. concentration: 1 draws uniformly, c by Beta(c, c) between them: AudioMAE's
    gain is [0.5, 1.5] with 10 (dataset.py, `roll_mag_aug`; the roll there moves nothing).
    """

    factor: tuple[float, float] = (0.5, 1.5)
    concentration: int = 1
    columns: ClassVar = ("factor",)

    def __post_init__(self) -> None:
        if not 0 <= self.factor[0] <= self.factor[1] < np.inf:
            raise ValueError(f"factor = {list(self.factor)} must be [from, to], 0 or more")
        if not 1 <= self.concentration <= 100:
            raise ValueError(f"concentration = {self.concentration}; it is 1 to 100")

    @property
    def numbers(self) -> int:
        """As many as have a middle one of that distribution."""
        return 2 * self.concentration - 1

    def shape(self, before: SoundShape) -> SoundShape:
        """Waveforms stay as long as they are."""
        before.wanted("T")
        return before

    def steps(self, real: I64, before: SoundShape) -> I64:
        """Waveforms keep their real steps."""
        return real

    def draw(self, uniforms_VBN: F64, before: SoundShape, real_VB: I64) -> F64:
        """Take the middle one of 2 c - 1 uniform numbers, which is Beta(c, c), on the range."""
        low, high = self.factor
        middle: F64 = np.median(uniforms_VBN, axis=-1)[..., None]
        return low + (high - low) * middle

    def apply(self, views: Tensor, rows: SoundRows) -> Tensor:
        """Multiply each view by its factor."""
        return views * rows.table_RP


@dataclass(frozen=True, kw_only=True)
class RemoveMean(Plain):
    """Subtract a view's mean over time, as AudioMAE does before Kaldi's fbank."""

    def shape(self, before: SoundShape) -> SoundShape:
        """Waveforms stay as long as they are."""
        before.wanted("T")
        return before

    def apply(self, views: Tensor, rows: SoundRows) -> Tensor:
        """Subtract the mean of the real steps from them; padding stays 0."""
        real_RT = rows.real_steps()
        mean_R1 = views.sum(1, keepdim=True) / rows.real_R[:, None]
        return torch.where(real_RT, views - mean_R1, 0.0)


@dataclass(frozen=True, kw_only=True)
class Standardize(Plain):
    """Zero mean and unit variance of each view over time: wav2vec 2.0 large, F.layer_norm.

    fairseq, data/audio/raw_audio_dataset.py, `normalize`. Deviation: officially the statistics are
    of the whole utterance, before it is cropped; here of the view.
    """

    eps: float = 1e-5

    def __post_init__(self) -> None:
        if not self.eps > 0:
            raise ValueError(f"eps = {self.eps} must be more than 0")

    def shape(self, before: SoundShape) -> SoundShape:
        """Waveforms stay as long as they are."""
        before.wanted("T")
        return before

    def apply(self, views: Tensor, rows: SoundRows) -> Tensor:
        """Divide by the biased standard deviation of what is real."""
        real_RT, count_R1 = rows.real_steps(), rows.real_R[:, None]
        centred = torch.where(real_RT, views - views.sum(1, keepdim=True) / count_R1, 0.0)
        var_R1 = centred.square().sum(1, keepdim=True) / count_R1
        return centred / (var_R1 + self.eps).sqrt()


def floats(samples: Tensor, memory: Memory | None) -> Tensor:
    """Make float32 in [-1, 1) of int16 samples; in what memory, if they lie on the host."""
    made = samples.float() if memory is None else in_memory(samples, memory)
    return made.mul_(1 / 32_768)  # exact, and a third quicker than to divide


def in_memory(samples: Tensor, memory: Memory) -> Tensor:
    """Copy samples as float32 into an array that `memory` gives."""
    return torch.from_numpy(memory.empty(tuple(samples.shape), np.float32)).copy_(samples)
