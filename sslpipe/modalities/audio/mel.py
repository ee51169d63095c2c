"""Banks of triangular filters on the mel scale, as Kaldi and as librosa and torchaudio make them.

Letters: f frequencies of a Fourier transform, F filters, E = F + 2 edges.
"""

import math
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Scale = Literal["htk", "slaney"]
TOGETHER = 16  # filters
BREAK, PER_HERTZ = 1_000.0, 3 / 200  # Slaney's scale is linear below the break, in Hz
PER_OCTAVE = 27 / math.log(6.4)  # mels for a factor of e above it


@lru_cache(maxsize=16)
def kaldi_bank(
    mels: int, fft: int, rate: int, low: float, high: float, device: torch.device
) -> Tensor:
    """Triangles on the mel scale, (f, F) float32; f = fft / 2 + 1, of which no filter has the last.

    Kaldi, feat/mel-computations.cc, and rounded as torchaudio.compliance.kaldi does it.
    low, high: ends in Hz.
    """
    ends = [1127 * math.log(1 + hertz / 700) for hertz in (low, high)]
    edges_E = ends[0] + torch.arange(mels + 2.0) * ((ends[1] - ends[0]) / (mels + 1))
    mel_f1 = 1127 * (1 + rate / fft * torch.arange(fft // 2) / 700).log()[:, None]
    return F.pad(triangles(mel_f1, edges_E), (0, 0, 0, 1)).to(device)


class Band(NamedTuple):
    """Some filters of a bank that lie side by side, and the frequencies that they look at."""

    start: int
    end: int
    weights_fF: Tensor


@lru_cache(maxsize=16)
def kaldi_bands(
    mels: int, fft: int, rate: int, low: float, high: float, device: torch.device
) -> tuple[Band, ...]:
    """The filters of `kaldi_bank`, 16 in each band: a fifth of the products of the whole bank."""
    bands = []
    for part_fF in kaldi_bank(mels, fft, rate, low, high, device).split(TOGETHER, dim=1):  # type: ignore[no-untyped-call]
        seen = part_fF.any(1).nonzero().flatten().tolist()
        start, end = (seen[0], seen[-1] + 1) if seen else (0, 1)
        bands.append(Band(start, end, part_fF[start:end].contiguous()))
    return tuple(bands)


@lru_cache(maxsize=16)
def mel_bank(
    mels: int, fft: int, rate: int, low: float, high: float, scale: Scale, device: torch.device
) -> Tensor:
    """Triangles in Hz between mels, (f, F) float32: torchaudio's `htk`, librosa's `slaney`.

    Of `slaney`, each is divided by half its width, so that all have the same area.
    """
    hertz_f1 = torch.linspace(0, rate / 2, fft // 2 + 1)[:, None]
    ends = [mel_of(hertz, scale) for hertz in (low, high)]
    edges_E = hertz_of(torch.linspace(ends[0], ends[1], mels + 2, dtype=torch.float64), scale)
    bank_fF = triangles(hertz_f1.double(), edges_E)
    if scale == "slaney":
        bank_fF = bank_fF * (2 / (edges_E[2:] - edges_E[:-2]))
    return bank_fF.float().to(device)


def triangles(places_f1: Tensor, edges_E: Tensor) -> Tensor:
    """Triangles from edge to edge but one, 1 in the middle, at some places: (f, F)."""
    left, centre, right = edges_E[:-2], edges_E[1:-1], edges_E[2:]
    up = (places_f1 - left) / (centre - left)
    down = (right - places_f1) / (right - centre)
    return torch.minimum(up, down).clamp_min(0)


def mel_of(hertz: float, scale: Scale) -> float:
    """Convert a frequency in Hz to mels."""
    if scale == "htk":
        return 2595 * math.log10(1 + hertz / 700)
    if hertz < BREAK:
        return hertz * PER_HERTZ
    return BREAK * PER_HERTZ + PER_OCTAVE * math.log(hertz / BREAK)


def hertz_of(mel_E: Tensor, scale: Scale) -> Tensor:
    """Convert frequencies in mels, (E,), to Hz."""
    if scale == "htk":
        return 700 * (10 ** (mel_E / 2595) - 1)
    above = BREAK * ((mel_E - BREAK * PER_HERTZ) / PER_OCTAVE).exp()
    return torch.where(mel_E < BREAK * PER_HERTZ, mel_E / PER_HERTZ, above)
