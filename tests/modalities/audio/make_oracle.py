"""How oracle.npz was made, by torchaudio 2.11.0: `python -m tests.modalities.audio.make_oracle`.

torchaudio is not needed for the tests.
"""

from pathlib import Path

import numpy as np
import torch

from .sounds import chirp


def main():
    """Kaldi's and BYOL-A's spectrograms of a chirp, and HuBERT's cepstra, (F, T) float32."""
    import torchaudio

    wave_1T = torch.from_numpy(chirp(0.2)).T
    kaldi_TF = torchaudio.compliance.kaldi.fbank(
        wave_1T - wave_1T.mean(), htk_compat=True, sample_frequency=16_000, use_energy=False,
        window_type="hanning", num_mel_bins=128, dither=0.0, frame_shift=10,
    )  # fmt: skip
    mel = torchaudio.transforms.MelSpectrogram(
        sample_rate=16_000, n_fft=1024, win_length=1024, hop_length=160, n_mels=64, f_min=60,
        f_max=7800,
    )  # fmt: skip
    byol_FT = (mel(wave_1T)[0] + torch.finfo().eps).log()
    cepstra_TC = torchaudio.compliance.kaldi.mfcc(
        wave_1T, sample_frequency=16_000, use_energy=False, dither=0.0
    )
    slopes = [cepstra_TC.T]
    for _ in range(2):  # fairseq, dump_mfcc_feature.py
        slopes.append(torchaudio.functional.compute_deltas(slopes[-1]))
    here = Path(__file__).with_name("oracle.npz")
    np.savez_compressed(
        here, kaldi=kaldi_TF.T.numpy(), byol=byol_FT.numpy(), mfcc=torch.cat(slopes).numpy()
    )


if __name__ == "__main__":
    main()
