"""Kaldi's cepstra, of which HuBERT makes its first units. Letters: C cepstra, F mels."""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .fbank import Fbank
from .op import I64, Plain, SoundRows, SoundShape

LIFTER = 22.0
NEAR = (-2, -1, 0, 1, 2)  # frames that a slope is fitted to


@dataclass(frozen=True, kw_only=True)
class MFCC(Plain):
    """Kaldi's mel-frequency cepstra with their slopes over time; "T" to "CFT".

    With these defaults what HuBERT clusters first (Hsu et al. 2021, arXiv:2106.07447, section 4.2;
    fairseq, dump_mfcc_feature.py): torchaudio.compliance.kaldi.mfcc(use_energy=False), 13 of 23
    mels, its slopes, and the slopes of these: 39. `shift` may be a multiple of 10 ms: cepstra are
    made every `shift // every` samples, and every `every`-th is kept.
    """

    cepstra: int = 13
    mels: int = 23
    window: int = 400  # samples
    shift: int = 160  # samples between what is kept
    every: int = 1
    slopes: int = 2  # 0: none; 1: of cepstra; 2: also theirs

    def __post_init__(self) -> None:
        if not 1 <= self.cepstra <= self.mels:
            raise ValueError(f"cepstra = {self.cepstra} must lie in 1 to mels = {self.mels}")
        if not 0 <= self.slopes <= 2:
            raise ValueError(f"slopes = {self.slopes}; it is 0, 1 or 2")
        if self.every < 1 or self.shift % self.every:
            raise ValueError(f"every = {self.every} must divide shift = {self.shift}")

    @property
    def fbank(self) -> Fbank:
        """The log mel spectrogram that the cepstra are made of."""
        return Fbank(
            mels=self.mels, window=self.window, shift=self.shift // self.every, taper="povey"
        )

    def shape(self, before: SoundShape) -> SoundShape:
        """Cepstra and slopes instead of mels."""
        made = self.fbank.shape(before)
        rows, frames = self.cepstra * (1 + self.slopes), 1 + (made.steps - 1) // self.every
        return made._replace(sizes=(1, rows, frames))

    def steps(self, real: I64, before: SoundShape) -> I64:
        """Windows that are full of sound; one at least."""
        return 1 + (self.fbank.steps(real, before) - 1) // self.every

    def apply(self, views: Tensor, rows: SoundRows) -> Tensor:
        """(R, 1, C (1 + slopes), T); frames of padding have the slopes of silence."""
        logs_R1FT = self.fbank.apply(views, rows)
        found = [lifted_dct(self.mels, self.cepstra, views.device).mT @ logs_R1FT]
        full = 1 + (rows.real_R - self.window).div(self.fbank.shift, rounding_mode="floor")
        for _ in range(self.slopes):
            found.append(slope(found[-1], full.clamp_min(1)))
        return torch.cat(found, dim=2)[..., :: self.every]


@lru_cache(maxsize=16)
def lifted_dct(mels: int, cepstra: int, device: torch.device) -> Tensor:
    """A cosine transform whose rows Kaldi lifts, (F, C)."""
    number_F, order_C = torch.arange(mels).double() + 0.5, torch.arange(cepstra).double()
    dct_FC = (math.pi / mels * number_F[:, None] * order_C).cos() * math.sqrt(2 / mels)
    dct_FC[:, 0] = math.sqrt(1 / mels)
    lift_C = 1 + 0.5 * LIFTER * (math.pi * order_C / LIFTER).sin()
    return (dct_FC * lift_C).float().to(device)


def slope(values_R1CT: Tensor, real_R: Tensor) -> Tensor:
    """Least squares over five frames, torchaudio's compute_deltas; beyond the ends their values.

    real_R: frames that are sound; the end is that of the sound.
    """
    number_T = torch.arange(values_R1CT.shape[-1], device=real_R.device)
    found = torch.zeros_like(values_R1CT)
    for near in NEAR:
        at_RT = torch.minimum((number_T + near).clamp_min(0), real_R[:, None] - 1)
        found += near * values_R1CT.gather(3, at_RT[:, None, None].expand_as(values_R1CT))
    return found / sum(near * near for near in NEAR)
