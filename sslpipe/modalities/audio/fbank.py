"""Ops that make spectrograms of waveforms: Kaldi's, that of BYOL-A, and Whisper's.

Letters: f frequencies of a Fourier transform, W samples of a window.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from .mel import Band, Scale, kaldi_bands, mel_bank
from .op import I64, Plain, SoundRows, SoundShape

EPS = torch.finfo(torch.float32).eps
MOST = 2**20  # samples of a window or between two, mels
CACHED = 1_000  # frames that a CPU works on together: 2 MB, which stay in its cache


@dataclass(frozen=True, kw_only=True)
class Fbank(Plain):
    """Kaldi's log-mel filter banks, equal to torchaudio.compliance.kaldi.fbank; "T" to "CFT".

    With these defaults those of AST and AudioMAE (`fbank(htk_compat=True, use_energy=False,
    window_type="hanning", dither=0, num_mel_bins=128, frame_shift=10)` at 16 kHz): each window of
    `window` samples loses its mean, is pre-emphasised, and padded to a power of two; windows that
    stick out of the recording are left out: 1 + (n - window) // shift frames. taper: Kaldi's
    `window_type`; its own default is povey, a Hann window to the power of 0.85.
    """

    mels: int = 128
    window: int = 400  # samples
    shift: int = 160  # samples between windows
    low: float = 20.0  # Hz
    high: float | None = None  # Hz; None: half the rate
    preemphasis: float = 0.97
    taper: Literal["hanning", "povey"] = "hanning"

    def __post_init__(self) -> None:
        check_windows(self.window, self.shift, self.mels)

    @property
    def fft(self) -> int:
        """The power of two that windows are padded to."""
        return 1 << (self.window - 1).bit_length()

    def shape(self, before: SoundShape) -> SoundShape:
        """Make a spectrogram of one channel, (1, mels, frames), of a waveform."""
        before.wanted("T")
        check_range(self.low, self.high, before.rate)
        if before.steps < self.window:
            raise ValueError(f"window = {self.window} is more than the {before.steps} samples")
        frames = 1 + (before.steps - self.window) // self.shift
        return SoundShape("CFT", (1, self.mels, frames), before.rate)

    def steps(self, real: I64, before: SoundShape) -> I64:
        """Windows that are full of sound; one at least."""
        return np.maximum(1 + (real - self.window) // self.shift, 1)

    def apply(self, views: Tensor, rows: SoundRows) -> Tensor:
        """(R, 1, F, T) log energies, not below the log of float32's epsilon."""
        frames, high = self.shape(rows.before).steps, self.high or rows.before.rate / 2
        bands = kaldi_bands(self.mels, self.fft, rows.before.rate, self.low, high, views.device)
        together = len(views) if views.is_cuda else max(1, CACHED // frames)
        made_RTF = views.new_empty(len(views), frames, self.mels)
        padded = views.new_zeros(min(together, len(views)), frames, self.fft)
        for first in range(0, len(views), together):
            part = slice(first, first + together)
            self.logs(views[part], bands, padded[: len(views[part])], made_RTF[part])
        return made_RTF.mT[:, None]

    def logs(
        self, views_RT: Tensor, bands: Sequence[Band], padded: Tensor, made_RTF: Tensor
    ) -> None:
        """Write log energies, by the steps of Kaldi, rounded as there.

        padded: (R, T, fft), zeros behind the window; frames are put there.
        """
        frames_RTW = views_RT.unfold(1, self.window, self.shift)
        frames_RTW = frames_RTW - frames_RTW.mean(2, keepdim=True)
        out_RTW = padded[..., : self.window]
        # each sample less a share of the one before, the first less a share of itself
        torch.mul(frames_RTW[..., :-1], self.preemphasis, out=out_RTW[..., 1:])
        torch.mul(frames_RTW[..., 0], self.preemphasis, out=out_RTW[..., 0])
        torch.sub(frames_RTW, out_RTW, out=out_RTW)
        hann_W = torch.hann_window(self.window, periodic=False, device=views_RT.device)
        out_RTW *= hann_W if self.taper == "hanning" else hann_W.pow(0.85)
        power_Nf = squared(torch.fft.rfft(padded)).flatten(0, 1)
        columns = made_RTF.flatten(0, 1).split([band.weights_fF.shape[1] for band in bands], dim=1)  # type: ignore[no-untyped-call]
        for band, column in zip(bands, columns, strict=True):
            torch.mm(power_Nf[:, band.start : band.end], band.weights_fF, out=column)
        made_RTF.clamp_min_(EPS).log_()


@dataclass(frozen=True, kw_only=True)
class MelSpectrogram(Plain):
    """Log of a mel spectrogram whose windows are centred; "T" to "CFT".

    The defaults are BYOL-A's at 16 kHz: torchaudio's MelSpectrogram(n_fft=1024, win_length=1024,
    hop_length=160, n_mels=64, f_min=60, f_max=7800), plus epsilon, log. 1 + n // shift frames of n
    samples; the ends are mirrored. scale `slaney` has librosa's filters.
    """

    mels: int = 64
    fft: int = 1024  # samples of a window
    shift: int = 160  # samples between windows
    low: float = 60.0  # Hz
    high: float | None = 7800.0  # Hz; None: half the rate
    scale: Scale = "htk"

    def __post_init__(self) -> None:
        check_windows(self.fft, self.shift, self.mels)

    def shape(self, before: SoundShape) -> SoundShape:
        """Make a spectrogram of one channel, (1, mels, frames), of a waveform."""
        check_range(self.low, self.high, before.rate)
        frames = 1 + centred_steps(before, self.fft) // self.shift
        return SoundShape("CFT", (1, self.mels, frames), before.rate)

    def steps(self, real: I64, before: SoundShape) -> I64:
        """Windows whose middle is no padding."""
        return 1 + real // self.shift

    def apply(self, views: Tensor, rows: SoundRows) -> Tensor:
        """(R, 1, F, T) natural logarithms."""
        rate = rows.before.rate
        bank_fF = mel_bank(
            self.mels, self.fft, rate, self.low, self.high or rate / 2, self.scale, views.device
        )

        def logs(part: Tensor) -> Tensor:
            return (power(part, self.fft, self.shift).mT @ bank_fF + EPS).log()

        return in_parts(views, self.shape(rows.before).steps, logs).mT[:, None]


@dataclass(frozen=True, kw_only=True)
class WhisperMel(Plain):
    """Whisper's input, at 16 kHz (openai/whisper, audio.py, log_mel_spectrogram); "T" to "CFT".

    Log10 of Slaney's filters, no less than 8 below the view's maximum, plus 4, over 4; of centred
    windows the last is dropped. Whisper pads to 30 s: `Crop: {seconds: 30, place: start}`.
    """

    mels: int = 80  # 128 of large-v3
    fft: ClassVar = 400
    shift: ClassVar = 160
    rate: ClassVar = 16_000

    def __post_init__(self) -> None:
        check_windows(self.fft, self.shift, self.mels)

    def shape(self, before: SoundShape) -> SoundShape:
        """Make a spectrogram of one channel, (1, mels, frames), of a waveform."""
        if before.rate != self.rate:
            raise ValueError(f"is made for {self.rate} Hz, not {before.rate}; set rate in Crop")
        frames = centred_steps(before, self.fft) // self.shift
        return SoundShape("CFT", (1, self.mels, frames), before.rate)

    def steps(self, real: I64, before: SoundShape) -> I64:
        """Windows that begin in what is no padding; one at least."""
        return np.clip(-(-real // self.shift), 1, before.steps // self.shift)

    def apply(self, views: Tensor, rows: SoundRows) -> Tensor:
        """(R, 1, F, T), about -1 to 1.5."""
        bank_fF = mel_bank(
            self.mels, self.fft, self.rate, 0.0, self.rate / 2, "slaney", views.device
        )

        def logs(part: Tensor) -> Tensor:
            power_RfT = power(part, self.fft, self.shift)[..., :-1]
            return (power_RfT.mT @ bank_fF).clamp_min(1e-10).log10()

        log_RTF = in_parts(views, self.shape(rows.before).steps, logs)
        floor_R11 = log_RTF.amax((1, 2), keepdim=True) - 8.0
        return ((torch.maximum(log_RTF, floor_R11) + 4.0) / 4.0).mT[:, None]


def in_parts(views_RT: Tensor, frames: int, work: Callable[[Tensor], Tensor]) -> Tensor:
    """`work` on as many rows together as stay in a CPU's cache; on a GPU on all.

    Windows and their transforms take fifty times the memory of the spectrogram. What is made goes
    to its place at once: in pieces it would lie between those, and keep their memory apart.
    """
    together = len(views_RT) if views_RT.is_cuda else max(1, CACHED // frames)
    first = work(views_RT[:together])
    made = first.new_empty((len(views_RT), *first.shape[1:]))
    made[:together] = first
    for start in range(together, len(views_RT), together):
        made[start : start + together] = work(views_RT[start : start + together])
    return made


def power(views_RT: Tensor, fft: int, shift: int) -> Tensor:
    """Squared magnitudes of centred Hann windows, (R, f, T)."""
    hann_W = torch.hann_window(fft, device=views_RT.device)
    return squared(torch.stft(views_RT, fft, shift, window=hann_W, return_complex=True))


def squared(found: Tensor) -> Tensor:
    """Squared magnitudes, in the memory of `found`; `abs` takes roots, which costs more."""
    parts = torch.view_as_real(found)
    parts.square_()
    return parts[..., 0] + parts[..., 1]


def centred_steps(before: SoundShape, fft: int) -> int:
    """The samples of waveforms whose ends can be mirrored.

    Raises:
        ValueError: they are too short.
    """
    before.wanted("T")
    if before.steps <= fft // 2:
        raise ValueError(
            f"mirrors {fft // 2} samples at the ends, and views have {before.steps}; make the crop "
            "longer"
        )
    return before.steps


def check_windows(window: int, shift: int, mels: int) -> None:
    """Raise a ValueError unless there are windows and filters, and no more than memory can hold."""
    if not 1 <= min(window, shift, mels) <= max(window, shift, mels) <= MOST:
        raise ValueError(
            f"windows of {window:,} every {shift:,} samples, {mels:,} mels: 1 to {MOST:,} each"
        )


def check_range(low: float, high: float | None, rate: int) -> None:
    """Raise a ValueError unless filters lie below half the rate."""
    if not 0 <= low < (high or rate / 2) <= rate / 2:
        raise ValueError(
            f"filters from {low:g} to {high or rate / 2:g} Hz must lie in 0 to {rate / 2:g}, half "
            "the rate of the crop"
        )
