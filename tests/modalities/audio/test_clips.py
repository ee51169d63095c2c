"""Decoding the planned crop equals decoding everything and cutting."""

import io
import math

import numpy as np
import pytest
import soundfile
import soxr

from sslpipe.errors import SampleError
from sslpipe.modalities.audio.clips import WaveDecode, merged_ranges, quantised, resampled
from sslpipe.modalities.audio.crop import SoundCrop
from sslpipe.rng import Keys

from .sounds import chirp, encoded, sample

WORDS = [0, 2**32 - 1, *np.random.default_rng(0).integers(0, 2**32, 6).tolist()]


def one(data, crop, word):
    return WaveDecode([(crop, 1)])(sample(data), [word]).data


@pytest.mark.parametrize("kind", ["wav", "flac", "float", "ogg", "mp3"])
@pytest.mark.parametrize("word", WORDS)
def test_a_crop_is_a_cut_of_the_whole(kind, word):
    data = encoded(chirp(2.0), kind=kind)
    whole = soundfile.read(io.BytesIO(data), dtype="float32")[0]
    crop = SoundCrop(rate=16_000, samples=3_000)
    start = math.floor(word / 2**32 * (len(whole) - 3_000 + 1))
    expected = np.clip(np.round(whole[start : start + 3_000] * 32_768), -32_768, 32_767)
    found = one(data, crop, word)
    assert found.dtype == np.int16
    worst = np.abs(found - expected).max()
    assert worst == 0 if kind in ("wav", "flac") else worst <= 1


def test_a_crop_of_opus_is_one_that_has_not_quite_settled():
    """Opus predicts from what was before, of which libsndfile decodes 80 ms: within 0.002."""
    data = encoded(chirp(2.0), kind="opus")
    whole = soundfile.read(io.BytesIO(data), dtype="float32")[0]
    crop = SoundCrop(rate=16_000, samples=3_000)
    for word in WORDS:
        start = word * (len(whole) - 3_000 + 1) >> 32
        found = one(data, crop, word) / 32_768
        assert np.abs(found - whole[start : start + 3_000]).max() < 2e-3


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000, 192_000])
@pytest.mark.parametrize("word", WORDS[:4])
def test_a_resampled_crop_is_a_cut_of_the_resampled_whole(rate, word):
    """The grid of new samples begins at the crop's first sample; differences are of rounding."""
    sound = np.random.default_rng(1).uniform(-0.5, 0.5, (2 * rate, 1)).astype(np.float32)
    crop = SoundCrop(rate=16_000, seconds=0.5)
    start = word * (2 * rate - rate // 2 + 1) >> 32
    period = rate // math.gcd(rate, 16_000)
    phase = start % period
    whole = soxr.resample(sound[phase:, 0], rate, 16_000, quality="HQ")
    expected = whole[(start - phase) * 16_000 // rate :][:8_000] * 32_768
    found = one(encoded(sound, rate=rate, kind="float"), crop, word)
    assert np.abs(found - expected).max() <= 1


def test_sixteen_bits_and_floats_give_the_same():
    sound = np.round(chirp(0.5) * 32_768) / 32_768
    crop = SoundCrop(rate=16_000, samples=2_000)
    assert (
        one(encoded(sound, kind="wav"), crop, 9) == one(encoded(sound, kind="float"), crop, 9)
    ).all()
    half = np.array([0.5, -0.5, 1.5, -1.5, 40_000.0, -40_000.0]) / 32_768
    assert quantised(half).tolist() == [1, -1, 2, -2, 32_767, -32_768]
    analogue = chirp(0.5, seed=3)
    found = one(encoded(analogue, kind="float"), SoundCrop(rate=16_000, seconds=0.5), 0)
    assert np.abs(found / 32_768 - analogue[:, 0]).max() <= 1 / 32_768


def test_channels_are_averaged_or_the_first():
    sound = chirp(0.5, channels=2)
    data = encoded(sound, kind="float")
    for channels, expected in (("mean", sound.mean(1)), ("first", sound[:, 0])):
        crop = SoundCrop(rate=16_000, seconds=0.5, channels=channels)
        assert np.abs(one(data, crop, 0) / 32_768 - expected).max() <= 0.5001 / 32_768
    opposite = np.stack([sound[:, 0], -sound[:, 0]], 1)
    assert (
        np.abs(one(encoded(opposite, kind="wav"), SoundCrop(rate=16_000, seconds=0.5), 0)).max()
        <= 1
    )


@pytest.mark.parametrize("rate", [16_000, 8_000])
def test_short_recordings_are_padded_or_repeated(rate):
    sound = chirp(0.25, rate=rate)
    data = encoded(sound, rate=rate)
    padding = SoundCrop(rate=16_000, seconds=1.0)
    found = one(data, padding, 77)
    assert padding.real(len(sound), rate) == 4_000
    assert np.abs(found[:4_000]).mean() > 1_000
    assert not found[4_000:].any()
    again = one(data, SoundCrop(rate=16_000, seconds=1.0, short="repeat"), 77)
    assert (again == np.tile(found[:4_000], 4)).all()


def test_several_views_are_decoded_at_once():
    data = encoded(chirp(2.0))
    short, long = SoundCrop(rate=16_000, samples=500), SoundCrop(rate=8_000, samples=4_000)
    words = [2**31, 5, 2**32 - 7]
    together = WaveDecode([(short, 2), (long, 1)])(sample(data), words).data
    alone = [one(data, crop, word) for crop, word in zip((short, short, long), words, strict=True)]
    assert (together == np.concatenate(alone)).all()
    assert merged_ranges([(5, 9), (0, 3), (2, 6), (20, 21)]) == [(0, 9), (20, 21)]


def test_starts_are_uniform_over_all_that_fit():
    keys = Keys(0, np.zeros(40_000, np.int64), np.arange(40_000), np.arange(1))
    words = keys.words("views/wave/Crop", 1)[0, :, 0].astype(np.int64)
    crop = SoundCrop(rate=16_000, samples=90)
    found = np.bincount(crop.start(words, np.int64(99), np.int64(16_000)), minlength=10)
    assert len(found) == 10
    assert np.abs(found - 4_000).max() < 5 * 60
    for place, start in (("centre", 4), ("start", 0)):
        assert SoundCrop(rate=16_000, samples=90, place=place).start(2**31, 99, 16_000) == start


def test_where_the_file_ends_is_told():
    data = encoded(chirp(0.5))
    with pytest.raises(SampleError):
        one(data[: len(data) // 2], SoundCrop(rate=16_000, samples=100), 2**32 - 1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "either seconds or samples"),
        ({"seconds": 1.0, "samples": 5}, "either seconds or samples"),
        ({"seconds": float("inf")}, "views of 0 samples"),
        ({"samples": 0}, "views of 0 samples"),
        ({"samples": 5, "rate": 50}, "rate = 50"),
    ],
)
def test_crops_that_are_none_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        SoundCrop(**{"rate": 16_000, **settings})
    assert len(resampled(np.zeros(441, np.int16), 44_100, 16_000)) == 160
