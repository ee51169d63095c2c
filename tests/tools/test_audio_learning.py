"""The split of tools/bench/audio_learning.py by speakers, and its fixed baseline."""

import io
import tarfile

import numpy as np
import pytest

from tests.modalities.audio.sounds import encoded

from ..conftest import load_tool

RATE = 8000


@pytest.fixture(scope="module")
def bench():
    """tools/bench/audio_learning.py as a module."""
    return load_tool("audio_learning")


def tone(pitch, seconds=0.4, loud=0.2):
    t = np.arange(int(seconds * RATE)) / RATE
    return encoded((loud * np.sin(2 * np.pi * pitch * t)).astype(np.float32), RATE)


@pytest.fixture
def digits(tmp_path):
    """Two digits of three speakers."""
    path = tmp_path / "digits.tar"
    with tarfile.open(path, "w") as tar:
        for digit in (0, 7):
            for speaker in ("ann", "bob", "theo"):
                data = tone(500 + 200 * digit)
                member = tarfile.TarInfo(f"{digit}_{speaker}_3.flac")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def test_no_take_of_the_held_out_speaker_is_trained_on(bench, digits, tmp_path):
    train, test = bench.split(digits, "theo", tmp_path / "out")
    found = [
        sorted(str(p.relative_to(folder)) for p in folder.rglob("*.*")) for folder in (train, test)
    ]
    assert found[0] == [f"{d}/{d}_{speaker}_3.flac" for d in (0, 7) for speaker in ("ann", "bob")]
    assert found[1] == ["0/0_theo_3.flac", "7/7_theo_3.flac"]
    with pytest.raises(SystemExit, match=r"no speaker 'eve'; there are \['ann', 'bob', 'theo'\]"):
        bench.split(digits, "eve", tmp_path / "other")


def test_the_baseline_depends_on_pitch_and_neither_on_level_nor_length(bench, digits, tmp_path):
    low, high = (bench.pooled(tone(pitch)) for pitch in (300, 1500))
    assert low.shape == (32 * 8,)
    bands = low.reshape(8, 32).mean(0), high.reshape(8, 32).mean(0)
    assert [int(band.argmax()) for band in bands] == [9 * 32 // 129, 48 * 32 // 129]
    train, test = bench.split(digits, "theo", tmp_path / "out")
    for kind in ("less its mean", "standardised"):
        bank, queries = (bench.spectrograms(folder, kind) for folder in (train, test))
        nearest = (queries.features[:, None] - bank.features).square().sum(-1).argmin(1)
        assert bank.labels[nearest].tolist() == queries.labels.tolist() == [0, 7]
        assert abs(bank.features.mean(1)).max() < 1e-5
