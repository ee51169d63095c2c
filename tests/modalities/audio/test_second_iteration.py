"""HuBERT's second iteration: the states of a run that guessed cepstra are guessed by the next."""

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from sslpipe.batch import IGNORED
from sslpipe.cli.commands import app
from sslpipe.errors import SslpipeError
from sslpipe.evaluate.frame_clusters import (
    CepstraSettings,
    ClusterSettings,
    frame_labels,
    of_layer,
    walk,
)
from sslpipe.evaluate.subjects import open_subject
from sslpipe.modalities.audio.frame_labels import read_frame_labels
from sslpipe.rng import sample_id
from sslpipe.shards import open_manifest

from .sounds import chirp, encoded, packed

RATE, SETTINGS = 8_000, ClusterSettings(classes=4, device="cpu")
RECIPE = """
modality: audio
stream: {batch_size: 4, seed: 3}
views: {wave: {ops: [Crop: {samples: 2400, rate: 8000, align: 80}, Standardize]}}
masks:
  spans: {view: wave, patch_size: 80, receptive_field: 160, sampler: {spans: {mask_length: 3}}}
targets: {frame_labels: {view: wave, task: {frame_labels: {file: FILE}}}}
method: {hubert: {dim: 8}}
train:
  backbone:
    wav2vec2: {dim: 16, depth: 2, heads: 2, conv_dim: 8, kernels: [10, 3, 3, 3, 3],
               strides: [5, 2, 2, 2, 2], position_kernel: 4, position_groups: 2}
  optimizer: {adamw: {lr: 1.0e-3}}
  lr_batch: 4
  schedule: linear
  epochs: 1
run: {workers: 0, prefetch: 0, threads: 1}
"""
SECONDS = {f"s{n}": 0.25 + n / 16 for n in range(8)}


def sound(name):
    """A chirp of int16, as the file holds it."""
    return (20_000 * chirp(SECONDS[name], RATE, seed=int(name[1:]))[:, 0]).astype(np.int16)


def told(*arguments):
    run = CliRunner().invoke(app, [*map(str, arguments)])
    assert run.exit_code == 0, run.output
    return " ".join(run.output.split())


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The folder of a set, with the labels of its cepstra and a run that was trained on them."""
    folder = tmp_path_factory.mktemp("hubert")
    files = {f"{name}.flac": encoded(sound(name), RATE) for name in SECONDS}
    packed(folder / "in", folder / "shards", files)
    told("frame-labels", folder / "shards", "--out", folder / "mfcc.npz", "--clusters", 4,
         "--rate", RATE, "--shift", 80, "--window", 160, "--device", "cpu")  # fmt: skip
    trained(folder, "mfcc")
    return folder


def trained(folder, labels):
    """Train on labels; the run has their name."""
    recipe = folder / f"{labels}.yaml"
    recipe.write_text(RECIPE.replace("FILE", str(folder / f"{labels}.npz")))
    told(
        "train", recipe, "--shards", folder / "shards", "--out", folder / labels, "--device", "cpu"
    )


def alone(run, name, layer):
    """The states of one recording, which nothing stands behind."""
    wave = torch.from_numpy(sound(name).astype(np.float32) / 32_768)
    wave = (wave - wave.mean()) / (wave.var(unbiased=False) + 1e-5).sqrt()
    encoder = open_subject(str(run)).encoder.eval()
    with torch.inference_mode():
        normed = encoder.normed(encoder.features(wave[None]))
        return encoder.context(normed, layers=layer)[0].numpy()


@pytest.mark.parametrize("layer", [1, 2])
def test_states_are_those_of_each_recording_alone(first, layer):
    """Zeros behind a short one would move the group norm of all its frames."""
    manifest = open_manifest(first / "shards")
    source = of_layer(manifest, str(first / "mfcc"), layer, SETTINGS)
    found = dict(walk(source, manifest, SETTINGS, order="sequential"))
    assert len(found) == len(SECONDS)
    for name in SECONDS:
        want = alone(first / "mfcc", name, layer)
        np.testing.assert_allclose(found[sample_id(name)], want, atol=1e-4)


def test_the_next_run_learns_to_guess_the_states_of_the_last(first):
    words = told(
        "frame-labels", first / "shards", "--of", first / "mfcc", "--layer", 2, "--clusters", 4,
        "--out", first / "layer2.npz", "--device", "cpu",
    )  # fmt: skip
    labels = read_frame_labels(str(first / "layer2.npz"))
    counts = {name: 1 + (len(sound(name)) - 160) // 80 for name in SECONDS}
    assert f"{sum(counts.values()):,} frames of 8 recordings, a label every 80 samples" in words
    assert labels.grid.origin.startswith("layer 2 of ")
    states = np.concatenate([alone(first / "mfcc", name, 2) for name in SECONDS])
    given = np.concatenate([
        labels.at(np.array([sample_id(name)]), np.array([0]), count)[0]
        for name, count in counts.items()
    ])  # fmt: skip
    assert IGNORED not in given
    centres = np.stack([states[given == label].mean(0) for label in range(4)])
    nearest = ((states[:, None] - centres) ** 2).sum(-1).argmin(-1)
    assert (nearest == given).mean() > 0.9  # the means of clusters are about their centres
    trained(first, "layer2")
    assert (first / "layer2" / "last.pt").exists()


@pytest.mark.parametrize(
    ("layer", "cepstra", "words"),
    [
        (None, CepstraSettings(), "which layer? add --layer with one of its encoder's, 1 to 2"),
        (3, CepstraSettings(), "--layer 3; give --layer with one of its encoder's, 1 to 2"),
        (2, CepstraSettings(rate=8_000, shift=80), "--rate, --shift and --window are of MFCC"),
    ],
)
def test_what_does_not_suit_a_run_is_one_line(first, layer, cepstra, words):
    with pytest.raises(SslpipeError) as caught:
        frame_labels(first / "shards", str(first / "mfcc"), layer, cepstra, SETTINGS)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_layer_of_nothing_is_refused(first):
    with pytest.raises(SslpipeError, match="--layer 2 is one of a run's; name it by --of RUN"):
        frame_labels(first / "shards", None, 2, CepstraSettings(), SETTINGS)
