"""Runs on sound: they go on exactly, and are measured beside their spectrogram and drawn."""

import numpy as np
import pytest
import torch

from sslpipe.errors import SslpipeError
from sslpipe.evaluate import EvalSettings, evaluate
from sslpipe.evaluate.encoding import LEAST, PooledSpectrogram
from sslpipe.modalities.audio.sheet import picture
from sslpipe.recipe import parse_recipe
from sslpipe.report import ReportSettings, write_report
from sslpipe.shards import PackSettings, pack
from sslpipe.train.loop import train_recipe
from tests.modalities.audio.sounds import AudioCodec, encoded

RATE, PITCHES = 8000, {"high": 2400, "low": 300, "middle": 900}  # Hz
WAVES = """\
modality: audio
stream: {batch_size: 6, seed: 3}
views:
  wave: {ops: [Crop: {samples: 2000, rate: 8000}]}
masks:
  spans: {view: wave, patch_size: 80, receptive_field: 160, sampler: {spans: {mask_length: 3}}}
targets:
  distractors: {view: wave, task: {distractors: {count: 5, mask: spans}}}
method: {wav2vec2: {entries: 4, dim: 8, code_dim: 8, gumbel: [2.0, 0.5, 0.9]}}
train:
  epochs: 2
  backbone:
    wav2vec2: {dim: 16, depth: 1, heads: 2, conv_dim: 8, kernels: [10, 3, 3, 3, 3],
      strides: [5, 2, 2, 2, 2], position_kernel: 4, position_groups: 2, dropout: 0.1}
  optimizer: {adamw: {lr: 0.01}}
run: {workers: 0}
"""
SPECTROGRAMS = """\
modality: audio
stream: {batch_size: 6, seed: 3}
views:
  global:
    ops:
      - Crop: {samples: 2680, rate: 8000}
      - Fbank: {mels: 16, window: 200, shift: 80}
      - Normalize: {mean: -5.0, std: 5.0}
masks:
  random: {patch_size: 8, sampler: {random: {ratio: 0.5}}}
method: {mae: {decoder_dim: 16, decoder_depth: 2, decoder_heads: 2, decoder_window: 2}}
train:
  epochs: 1
  backbone: {vit_tiny: {embed_dim: 24, depth: 1, num_heads: 2, patch_size: 8, pos_embed: sincos}}
  optimizer: {adamw: {lr: 0.001}}
run: {workers: 0}
"""


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """Six noisy tones of each of three pitches, a class each; of 0.2 to 0.4 s."""
    folder, rng = tmp_path_factory.mktemp("tones"), np.random.default_rng(0)
    for name, pitch in PITCHES.items():
        (folder / "files" / name).mkdir(parents=True)
        for take in range(6):
            t = np.arange(int(RATE * (0.2 + take / 25))) / RATE
            tone = 0.2 * np.sin(2 * np.pi * pitch * t + take) + rng.normal(0, 0.02, len(t))
            data = encoded(tone.astype(np.float32), RATE)
            (folder / "files" / name / f"{take}.flac").write_bytes(data)
    pack(folder / "files", folder / "shards", PackSettings(codec=AudioCodec()))
    return folder / "shards"


def train(text, shards, out, **options):
    recipe = parse_recipe(text, path="r.yaml")
    options = {"resume": False, "max_steps": None, **options}
    return train_recipe(recipe, shards=shards, out=out, device="cpu", **options)


def test_wav2vec2_stopped_and_resumed_is_bit_identical(tones, tmp_path):
    """Noise of the quantiser, dropout and its temperature too."""
    train(WAVES, tones, tmp_path / "whole")
    train(WAVES, tones, tmp_path / "parts", max_steps=2)
    train(WAVES, tones, tmp_path / "parts", resume=True)
    states = [
        torch.load(tmp_path / run / "last.pt", weights_only=True) for run in ("whole", "parts")
    ]
    assert states[0]["method"].keys() == states[1]["method"].keys()
    for name, tensor in states[0]["method"].items():
        assert torch.equal(tensor, states[1]["method"][name]), name
    assert states[0]["method"]["steps"] == 6  # 18 recordings, twice, in batches of 6


@pytest.mark.parametrize("text", [WAVES, SPECTROGRAMS], ids=["waves", "spectrograms"])
def test_sound_is_measured_beside_its_spectrogram_and_drawn(tones, tmp_path, text):
    train(text, tones, tmp_path / "run", max_steps=1)
    settings = EvalSettings(protocols=("knn", "linear"), device="cpu")
    found = evaluate(tmp_path / "run", tones, settings=settings)
    assert set(found.measures) == {"trained", "untrained", "spectrogram"}
    baseline = {m.name: m.value for m in found.measures["spectrogram"]}
    assert baseline["linear top-1"] == 1.0  # pitches are told apart by where the energy is
    report = ReportSettings(queries=2, neighbours=2)
    page = write_report([found], tmp_path / "report", report).read_text()
    assert page.count('alt="') >= 2 * (1 + 2)
    assert ">spectrogram</span>" in page
    assert "raw pixels" not in page
    protocols = EvalSettings(protocols=("probe_mae",), device="cpu", epochs=1)
    with pytest.raises(SslpipeError, match="trained protocols crop and flip pictures"):
        evaluate(tmp_path / "run", tones, settings=protocols)


def slow_spectrogram(wave):
    """Log power of windows of 256 samples every 128, as loops."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(256) / 256)
    frames = [wave[at : at + 256] * window for at in range(0, len(wave) - 255, 128)]
    return np.log(np.abs(np.fft.rfft(frames)) ** 2 + LEAST).T


def test_the_baseline_of_waveforms_is_the_pooled_log_power():
    wave = torch.randn(2, 1024, generator=torch.Generator().manual_seed(0))
    made = PooledSpectrogram()(wave)
    for row, features in zip(wave.numpy().astype(np.float64), made, strict=True):
        whole = slow_spectrogram(row)  # 129 frequencies, 7 frames: 32 overlapping bins
        edges = [(int(i * 129 / 32), -(-(i + 1) * 129 // 32)) for i in range(32)]
        expected = np.stack([whole[low:high].mean(0) for low, high in edges])
        np.testing.assert_allclose(features.view(32, 7).numpy(), expected, rtol=0, atol=1e-3)
    assert PooledSpectrogram()(torch.ones(1, 100)).isfinite().all()  # shorter than a window


def test_a_picture_of_a_tone_is_bright_where_the_tone_is():
    t = np.arange(4000) / RATE
    for pitch in (500, 3000):
        data = encoded(0.3 * np.sin(2 * np.pi * pitch * t).astype(np.float32), RATE)
        drawn = picture(data, 64)
        assert drawn.shape == (64, 64, 3)
        brightest = int(drawn.sum((1, 2), dtype=np.int64).argmax())
        assert abs(brightest - 63 * (1 - pitch / 4000)) < 3  # low frequencies below
