"""Spectrograms equal to those of the libraries they are named after; ops against slow loops."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import WhisperFeatureExtractor

from sslpipe.modalities.audio.fbank import Fbank, MelSpectrogram, WhisperMel
from sslpipe.modalities.audio.levels import FilterAugment, LinearFader, RemoveBandMean
from sslpipe.modalities.audio.mfcc import MFCC
from sslpipe.modalities.audio.mixing import Mix, MixLog
from sslpipe.modalities.audio.op import SoundRows, SoundShape
from sslpipe.modalities.audio.spectrograms import (
    NormalizeSound,
    PadFrames,
    RandomResizeCrop,
    SpecAugment,
)
from sslpipe.modalities.audio.waves import Gain, RemoveMean, Standardize

from .sounds import chirp

ORACLE = np.load(Path(__file__).with_name("oracle.npz"))  # see make_oracle.py
MELS = SoundShape("CFT", (1, 64, 96), 16_000)


def waves(*seconds):
    """(R, T) of one length, zeros behind the shorter ones; real steps."""
    sounds = [chirp(each, seed=n)[:, 0] for n, each in enumerate(seconds)]
    longest = max(map(len, sounds))
    padded = [np.pad(sound, (0, longest - len(sound))) for sound in sounds]
    return torch.from_numpy(np.stack(padded)), torch.tensor([len(sound) for sound in sounds])


def rows_of(before, real, table=None):
    table = torch.empty(len(real), 0) if table is None else torch.as_tensor(table).float()
    return SoundRows(table, real, before)


def applied(op, views, real=None, table=None):
    axes = "T" if views.ndim == 2 else "CFT"
    real = torch.full((len(views),), views.shape[-1]) if real is None else real
    before = SoundShape(axes, tuple(views.shape[1:]), 16_000)
    made = op.apply(views, rows_of(before, real, table))
    assert tuple(made.shape[1:]) == op.shape(before).sizes
    return made


def test_fbank_is_kaldi_s():
    """The oracle has its mean over the whole sound removed, as AudioMAE does."""
    wave, _ = waves(0.2)
    found = applied(Fbank(), applied(RemoveMean(), wave))[0, 0]
    np.testing.assert_allclose(found.numpy(), ORACLE["kaldi"], rtol=0, atol=1e-5)
    both = applied(Fbank(), applied(RemoveMean(), torch.cat([wave * 0.1, wave])))
    torch.testing.assert_close(both[1, 0], found, rtol=0, atol=1e-5)


def test_mel_spectrogram_is_torchaudio_s_with_byol_a_s_settings():
    found = applied(MelSpectrogram(), waves(0.2)[0])[0, 0]
    np.testing.assert_allclose(found.numpy(), ORACLE["byol"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("mels", [80, 128])
def test_whisper_s_is_that_of_transformers(mels):
    wave, _ = waves(1.0)
    official = WhisperFeatureExtractor(feature_size=mels, chunk_length=1)
    expected = official(wave[0].numpy(), sampling_rate=16_000, return_tensors="pt").input_features
    torch.testing.assert_close(
        applied(WhisperMel(mels=mels), wave)[:, 0], expected, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    ("op", "samples", "frames"),
    [(Fbank(), 160_000, 998), (Fbank(), 400, 1), (MelSpectrogram(), 15_200, 96),
     (WhisperMel(), 480_000, 3_000)],
)  # fmt: skip
def test_frames_are_as_the_papers_count_them(op, samples, frames):
    assert op.shape(SoundShape("T", (samples,), 16_000)).steps == frames
    real = np.array([samples, samples // 2, 1])
    steps = op.steps(real, SoundShape("T", (samples,), 16_000))
    assert steps[0] == frames
    assert steps.min() >= 1


@pytest.mark.parametrize(
    ("op", "shape", "words"),
    [
        (Fbank(), MELS, "is for waveforms, and here views are spectrograms"),
        (Fbank(), SoundShape("T", (399,), 16_000), "window = 400 is more than the 399"),
        (Fbank(low=9_000.0), SoundShape("T", (900,), 16_000), "must lie in 0 to 8000"),
        (MelSpectrogram(), SoundShape("T", (512,), 16_000), "mirrors 512 samples"),
        (WhisperMel(), SoundShape("T", (5_000,), 8_000), "is made for 16000 Hz, not 8000"),
        (SpecAugment(), SoundShape("T", (5_000,), 8_000), "put it behind the op that makes"),
        (SpecAugment(frequency=70), MELS, "frequency = 70 is more than 64 mels"),
        (Mix(), MELS, "is for waveforms"),
        (MixLog(), SoundShape("T", (5_000,), 8_000), "is for spectrograms"),
    ],
)
def test_ops_that_do_not_suit_are_refused(op, shape, words):
    with pytest.raises(ValueError, match=words):
        op.shape(shape)


def test_padding_stays_zero_and_does_not_count():
    views, real = waves(0.3, 0.1)
    alone = views[1:, : real[1]]
    for op in (RemoveMean(), Standardize()):
        found = applied(op, views + 0.1 * (torch.arange(views.shape[1]) < real[:, None]), real)
        assert not found[1, real[1] :].any()
        expected = applied(op, alone + 0.1)
        torch.testing.assert_close(found[1:, : real[1]], expected)
    normal = F.layer_norm(alone, alone.shape[1:])
    torch.testing.assert_close(applied(Standardize(), alone), normal, atol=1e-5, rtol=1e-5)


def test_frames_of_padding_are_zero_before_they_are_normalised():
    views = torch.full((2, 1, 64, 96), -15.9)
    found = applied(PadFrames(frames=128), views, torch.tensor([96, 40]))
    assert (found != 0).sum((1, 2, 3)).tolist() == [96 * 64, 40 * 64]
    bright = applied(NormalizeSound(mean=-4.2677393, std=2 * 4.5689974), found)
    assert bright[0, 0, 0, -1].item() == pytest.approx(0.467, abs=1e-3)
    assert applied(PadFrames(frames=50), views).shape == (2, 1, 64, 50)


def test_gain_is_beta_distributed():
    uniforms = np.random.default_rng(0).random((1, 20_000, 19))
    gain = Gain(concentration=10)
    table = gain.draw(uniforms, MELS, np.ones((1, 20_000)))
    assert gain.numbers == 19
    assert abs(table.mean() - 1) < 0.004
    assert abs(table.var() - 1 / 84) < 0.0008  # of Beta(10, 10): 1 / (4 * 21)
    assert abs(Gain().draw(uniforms[..., :1], MELS, np.ones((1, 20_000))).var() - 1 / 12) < 0.003
    views = applied(gain, waves(0.1, 0.1)[0], table=table[0, :2])
    torch.testing.assert_close(views, waves(0.1, 0.1)[0] * torch.tensor(table[0, :2]).float())


def test_spec_augment_hides_bands_of_uniform_width_that_differ():
    op, batch = SpecAugment(frequency=20, time=40, most=0.5), 4_000
    uniforms = np.random.default_rng(0).random((1, batch, op.numbers))
    real = np.where(np.arange(batch) % 2, 96, 30)[None]
    table = op.draw(uniforms, MELS, real)[0].reshape(batch, 4, 2)
    width = table[..., 1] - table[..., 0]
    assert np.bincount(width[:, 0].astype(int)).tolist() == pytest.approx([batch / 21] * 21, abs=70)
    assert (width[1::2, 2:].max(), width[::2, 2:].max()) == (40, 15)
    assert (table[..., 0] >= 0).all()
    assert table[:, :2, 1].max() == 64
    assert (table[:, 2:, 1] <= real[0][:, None]).all()
    views = torch.ones(50, 1, 64, 96)
    found = applied(op, views, table=table[:50].reshape(50, -1))
    for view, bands in zip(found[:, 0], table[:50].astype(int), strict=True):
        slow = torch.ones(64, 96)
        for start, end in bands[:2]:
            slow[start:end] = 0
        for start, end in bands[2:]:
            slow[:, start:end] = 0
        assert (view == slow).all()


def test_random_resize_crop_is_byol_a_s():
    """Each view beside a slow transcription of the official steps, with the same boxes."""
    op, batch = RandomResizeCrop(canvas=(1.2, 1.5)), 40
    table = op.draw(np.random.default_rng(0).random((1, batch, 4)), MELS, np.ones((1, batch)))[0]
    views = torch.randn(batch, 1, 64, 96, generator=torch.Generator().manual_seed(0))
    found = applied(op, views, table=table)
    canvas = F.pad(views, (24, 24, 6, 6))
    assert canvas.shape[2:] == (76, 144)
    sides = table[:, 2:]
    assert (sides.min(0) >= [38, 57]).all()
    assert (sides.max(0) <= [76, 144]).all()
    for n, (top, left, height, width) in enumerate(table.astype(int).tolist()):
        box = canvas[n : n + 1, :, top : top + height, left : left + width]
        assert box.shape[2:] == (height, width)
        slow = F.interpolate(box, size=(64, 96), mode="bicubic", align_corners=True)
        torch.testing.assert_close(found[n], slow[0], atol=1e-4, rtol=0)


def test_mixtures_are_of_waves_or_of_energies():
    x, z = torch.randn(2, 3, 1, 64, 96, generator=torch.Generator().manual_seed(0))
    share, real = torch.tensor([[0.1], [0.4], [0.0]]), torch.tensor([96, 50, 96])
    found = MixLog().mixed(x, z, rows_of(MELS, real, share))
    weight = share[:, :, None, None]
    slow = ((1 - weight) * x.exp() + weight * z.exp() + torch.finfo().eps).log()
    torch.testing.assert_close(found[0], slow[0])
    assert (found[1, ..., 50:] == x[1, ..., 50:]).all()
    torch.testing.assert_close(found[2], x[2], atol=1e-5, rtol=1e-5)
    x, z = x[:, 0, 0], z[:, 0, 0]
    found = Mix().mixed(x, z, rows_of(SoundShape("T", (96,), 16_000), real, share))
    torch.testing.assert_close(found[0], 0.9 * x[0] + 0.1 * z[0])
    assert (found[1, 50:] == x[1, 50:]).all()


def test_mfcc_is_kaldi_s_with_slopes_as_hubert_takes_them():
    wave, real = waves(0.2)
    found = applied(MFCC(), wave)[0, 0]
    np.testing.assert_allclose(found.numpy(), ORACLE["mfcc"], rtol=0, atol=2e-4)
    padded, real = waves(0.2, 0.3)  # behind zeros the slopes are those of the sound alone
    both = applied(MFCC(), padded, real)[0, 0]
    frames = found.shape[1]
    torch.testing.assert_close(both[:, :frames], found, rtol=0, atol=2e-4)
    every = applied(MFCC(shift=320, every=2), padded, real)[0, 0]
    assert torch.equal(every, both[:, ::2])
    before = SoundShape("T", (padded.shape[1],), 16_000)
    steps = MFCC(shift=320, every=2).steps(real.numpy(), before)
    assert steps.tolist() == [1 + (n - 400) // 320 for n in real.tolist()]


def mels(count=3, seed=0):
    return torch.randn(count, 1, 12, 20, generator=torch.Generator().manual_seed(seed))


def test_band_means_are_removed_where_there_is_sound():
    views, real = mels(), torch.tensor([20, 7, 1])
    found = applied(RemoveBandMean(), views.clone(), real)
    for row, view, count in zip(found[:, 0], views[:, 0], real.tolist(), strict=True):
        for band, old in zip(row, view, strict=True):
            torch.testing.assert_close(band[:count], old[:count] - old[:count].mean())
            assert not band[count:].any()
    louder = views + torch.randn(1, 1, 12, 1)  # another microphone
    torch.testing.assert_close(applied(RemoveBandMean(), louder, real), found)


def drawn_table(op, views=5_000, shape=(1, 12, 20)):
    u = np.random.default_rng(0).random((1, views, op.numbers))
    before = SoundShape("CFT", shape, 16_000)
    return op.draw(u, before, np.full((1, views), shape[-1]))[0]


def test_the_fader_is_a_line_between_two_drawn_ends():
    op = LinearFader(gain=0.8)
    table = drawn_table(op)
    assert np.abs(table).max() <= 0.8
    assert abs(np.corrcoef(table.T)[0, 1]) < 0.05
    assert abs(table.std() - 1.6 / np.sqrt(12)) < 0.02
    added = applied(op, mels(), table=table[:3]) - mels()
    for row, (head, tail) in zip(added[:, 0], table[:3], strict=True):
        line = torch.from_numpy(np.linspace(head, tail, 20)).float()
        torch.testing.assert_close(row, line.expand(12, 20), rtol=0, atol=1e-5)


@pytest.mark.parametrize("points", [2, 5])
def test_the_filter_is_a_broken_line_over_frequency(points):
    op = FilterAugment(gain=0.6, points=points)
    table = drawn_table(op)
    places, gains = np.split(table, 2, axis=1)
    assert (np.diff(places) >= 0).all()
    assert (places[:, 0] == 0).all()
    assert (places[:, -1] == 1).all()
    assert np.abs(gains).max() <= 0.6
    assert np.abs(gains.mean(0)).max() < 0.02
    added = applied(op, mels(), table=table[:3]) - mels()
    for row, place, gain in zip(added[:, 0], places[:3], gains[:3], strict=True):
        line = torch.from_numpy(np.interp(np.linspace(0, 1, 12), place, gain)).float()
        torch.testing.assert_close(row, line[:, None].expand(12, 20), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("op", "settings", "words"),
    [
        (Standardize, {"eps": -1e-3}, "eps = -0.001 must be more than 0"),
        (Fbank, {"mels": 2**40}, "1,099,511,627,776 mels: 1 to 1,048,576 each"),
        (LinearFader, {"gain": 0.0}, "gain = 0.0 must be above 0"),
        (FilterAugment, {"points": 1}, "points = 1; a line has 2 to 64"),
        (MFCC, {"cepstra": 24}, "cepstra = 24 must lie in 1 to mels = 23"),
        (MFCC, {"shift": 320, "every": 3}, "every = 3 must divide shift = 320"),
    ],
)
def test_impossible_levels_and_cepstra_are_refused(op, settings, words):
    with pytest.raises(ValueError, match=words):
        op(**settings)
