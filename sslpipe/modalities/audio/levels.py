"""Ops on how loud a spectrogram is, by frequency and by time. Letters: R rows, F and T as there.

A factor of a filter, a microphone or a distance is a number added to log energies.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .op import F64, I64, SoundRows, SoundShape
from .spectrograms import OnSpectrograms


@dataclass(frozen=True, kw_only=True)
class RemoveBandMean(OnSpectrograms):
    """Subtract the mean over time of each mel, of each view: what a microphone adds to all frames.

    Cepstral mean normalisation, of log energies (Atal 1974). Padding becomes 0, which is the mean.
    """

    def apply(self, views: Tensor, rows: SoundRows) -> Tensor:
        """Subtract the mean of what is no padding."""
        real_R11T = rows.real_steps()[:, None, None]
        mean_RCF1 = (views * real_R11T).sum(3, keepdim=True) / rows.real_R[:, None, None, None]
        return torch.where(real_R11T, views - mean_RCF1, 0.0)


@dataclass(frozen=True, kw_only=True)
class LinearFader(OnSpectrograms):
    """Add a straight line over time, whose ends are uniform on -gain to gain.

    Random Linear Fader of BYOL-A v2 (Niizumi et al. 2022, arXiv:2204.07402, section 3.3), where
    views are normalised before it: gain is then in deviations of the set.
    """

    gain: float = 1.0
    columns = ("head", "tail")
    numbers = 2

    def __post_init__(self) -> None:
        check_gain(self.gain)

    def draw(self, uniforms_VBN: F64, before: SoundShape, real_VB: I64) -> F64:
        """Draw what is added at both ends of a view, (V, B, 2), uniform up to `gain` either way."""
        return self.gain * (2 * uniforms_VBN - 1)

    def apply(self, views: Tensor, rows: SoundRows) -> Tensor:
        """Padding is faded, too, as officially."""
        share_T = torch.linspace(0, 1, rows.before.steps, device=views.device)
        head_R1, tail_R1 = rows.table_RP.split(1, dim=1)  # type: ignore[no-untyped-call]
        return views + torch.lerp(head_R1, tail_R1, share_T)[:, None, None]


@dataclass(frozen=True, kw_only=True)
class FilterAugment(OnSpectrograms):
    """Add a line over frequency with a random number at each of `points`, straight between them.

    FilterAugment's linear kind (Nam et al. 2022, arXiv:2110.03282, section 3.1): a random room and
    microphone. The ends are points, the others lie anywhere between; numbers are uniform on -gain
    to gain. Deviations: officially their number is random, too, bands have a least width, and
    numbers are dB, -6 to 6 of log energies, which are 1.38 here.
    """

    gain: float = 1.38
    points: int = 4

    def __post_init__(self) -> None:
        check_gain(self.gain)
        if not 2 <= self.points <= 64:
            raise ValueError(f"points = {self.points}; a line has 2 to 64, its ends counted")

    @property
    def columns(self) -> tuple[str, ...]:  # type: ignore[override]
        """Where the points lie, as shares of the mels, and what is added there."""
        return tuple(f"{kind}_{n}" for kind in ("place", "gain") for n in range(self.points))

    @property
    def numbers(self) -> int:  # type: ignore[override]
        """A place for each point but the ends, and a gain for each."""
        return 2 * self.points - 2

    def draw(self, uniforms_VBN: F64, before: SoundShape, real_VB: I64) -> F64:
        """Places in order, then gains, (V, B, 2 points)."""
        inner, gains = np.split(uniforms_VBN, [self.points - 2], axis=-1)
        ends = np.zeros_like(gains[..., :1])
        places = [ends, np.sort(inner, axis=-1), ends + 1]
        return np.concatenate([*places, self.gain * (2 * gains - 1)], axis=-1)

    def apply(self, views: Tensor, rows: SoundRows) -> Tensor:
        """The same for all frames, those of padding, too."""
        places_RN, gains_RN = rows.table_RP.split(self.points, dim=1)  # type: ignore[no-untyped-call]
        mels = rows.before.sizes[1]
        share_RF = torch.linspace(0, 1, mels, device=views.device).expand(len(views), -1)
        after_RF = torch.searchsorted(places_RN.contiguous(), share_RF.contiguous())
        after_RF = after_RF.clamp(1, self.points - 1)
        (left, low), (right, high) = (
            (places_RN.gather(1, point), gains_RN.gather(1, point))
            for point in (after_RF - 1, after_RF)
        )
        way_RF = (share_RF - left) / (right - left).clamp_min(1e-6)
        return views + torch.lerp(low, high, way_RF)[:, None, :, None]


def check_gain(gain: float) -> None:
    """Raise a ValueError unless something finite can be added."""
    if not 0 < gain < np.inf:
        raise ValueError(f"gain = {gain} must be above 0, and finite")
