"""Labels of frames: of exactly the samples that frames see, whatever a view begins with."""

import numpy as np
import pytest
from typer.testing import CliRunner

from sslpipe.batch import IGNORED
from sslpipe.cli.commands import app
from sslpipe.errors import RecipeError, ShardError, SslpipeError
from sslpipe.evaluate.frame_clusters import (
    CepstraSettings,
    ClusterSettings,
    frame_labels,
    longest_of,
)
from sslpipe.modalities.audio.crop import SoundCrop
from sslpipe.modalities.audio.frame_labels import (
    FrameGrid,
    LabelledFrames,
    read_frame_labels,
    write_frame_labels,
)
from sslpipe.rng import sample_id
from sslpipe.shards import open_manifest
from tests.streaming import steps

from .sounds import chirp, encoded, load, packed

RATE, HOP, FIELD, CLASSES = 8_000, 80, 160, 500
RECIPE = """
modality: audio
stream: {batch_size: 4, seed: 3}
views: {wave: {ops: [Crop: {samples: 4000, rate: 8000, align: 80}]}}
masks:
  spans: {view: wave, patch_size: 80, receptive_field: 160, sampler: {spans: {mask_length: 3}}}
targets: {frame_labels: {view: wave, task: {frame_labels: {file: FILE}}}}
run: {workers: 0, prefetch: 0, threads: 1}
"""


def whole_frames(samples):
    return 1 + (samples - FIELD) // HOP


@pytest.fixture(scope="module")
def ramps(tmp_path_factory):
    """Recordings whose samples count from 0, one shorter than a view, one at twice the rate."""
    folder, lengths = tmp_path_factory.mktemp("ramps"), [3000, 8000, 20_000, 9_999, 12_345, 30_000]
    sounds = {f"s{n}.wav": encoded(np.arange(length, dtype=np.int16), RATE, "wav")
              for n, length in enumerate(lengths)}  # fmt: skip
    shards = packed(folder / "in", folder / "out", sounds)
    uids = np.array([sample_id(f"s{n}") for n in range(len(lengths))])
    order = np.argsort(uids)
    counts = np.array([whole_frames(lengths[n]) for n in order])
    made = LabelledFrames(
        FrameGrid(RATE, HOP, FIELD, CLASSES, "their places"), uids[order],
        np.concatenate([[0], np.cumsum(counts)]),
        np.concatenate([np.arange(count) for count in counts]).astype(np.uint16),
    )  # fmt: skip
    write_frame_labels(folder / "labels.npz", made)
    return shards, folder / "labels.npz", dict(zip(uids.tolist(), lengths, strict=True))


def test_labels_are_those_of_the_samples_that_frames_see(ramps):
    """The label of frame f is f, and sample n holds n: a view begins with its first label's."""
    shards, file, lengths = ramps
    with load(RECIPE.replace("FILE", str(file)), shards) as pipe:
        assert pipe.spec.targets["frame_labels"].shape == (49,)
        starts = set()
        for batch in steps(pipe, 12):
            for b, uid in enumerate(batch.uids.tolist()):
                wave, labels = batch.views["wave"][0, b], batch.targets["frame_labels"][0, b]
                start = round(wave[0].item() * 32_768)
                real = min(49, whole_frames(lengths[uid] - start))
                assert start % HOP == 0
                assert labels[:real].tolist() == [start // HOP + n for n in range(real)]
                assert (labels[real:] == IGNORED).all()
                starts.add(start)
    assert len(starts) > 20


def test_ranks_have_the_same_labels(ramps):
    shards, file, _ = ramps
    text = RECIPE.replace("FILE", str(file))
    found = []
    for ranks in (1, 2):
        rows = {}
        for rank in range(ranks):
            with load(text, shards, rank=rank, world_size=ranks) as pipe:
                for batch in steps(pipe, 3):
                    labels = batch.targets["frame_labels"][0].tolist()
                    for uid, row in zip(batch.uids.tolist(), labels, strict=True):
                        rows.setdefault((batch.step, uid), []).append(row)
        found.append({key: sorted(each) for key, each in rows.items()})
    assert found[0] == found[1]


@pytest.mark.parametrize(("rate", "own"), [(16_000, 44_100), (16_000, 11_025), (8_000, 8_000),
                                           (16_000, 48_000)])  # fmt: skip
def test_crops_begin_where_frames_do_at_any_rate(rate, own):
    crop = SoundCrop(samples=2_000, rate=rate, align=320)
    words = np.random.default_rng(0).integers(0, 2**32, 3_000)
    starts = crop.start(words, 60_001, own)
    assert ((starts * rate) % own == 0).all()  # at `rate`, it is a whole number of samples
    assert (starts * rate // own % 320 == 0).all()
    assert starts.max() + crop.needed(own) <= 60_001
    room = (60_001 - crop.needed(own)) // crop.step(own) + 1
    counts = np.bincount(starts // crop.step(own), minlength=room)
    assert len(counts) == room
    assert (np.abs(counts - 3_000 / room) < 6 * np.sqrt(3_000 / room) + 1).all()
    assert crop.start(7, 60_001, own) == starts.min() == 0


def test_a_file_that_changed_is_another_stream(ramps, tmp_path):
    shards, file, _ = ramps
    with load(RECIPE.replace("FILE", str(file)), shards) as pipe:
        assert read_frame_labels(str(file)).digest in pipe.state_dict()["recipe"]
    lacking = tmp_path / "few.npz"
    made = read_frame_labels(str(file))
    write_frame_labels(
        lacking, LabelledFrames(made.grid, made.uids[1:], made.ends[1:], made.labels)
    )
    with load(RECIPE.replace("FILE", str(lacking)), shards) as pipe, \
            pytest.raises(ShardError, match=f"uid {made.uids[0]} has none"):  # fmt: skip
        steps(pipe, 6)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (", align: 80", "", "write align: 80 in Crop"),
        ("FILE", "missing.npz", "missing.npz: cannot be read"),
        ("patch_size: 80, receptive_field: 160", "patch_size: 160", "a frame every 160 at 8,000"),
        ("{file: FILE}", "{file: FILE, mask: spins}", "masks.spins is none over 'wave'"),
        ("align: 80", "align: 0", "align = 0"),
    ],
)
def test_mistakes_are_one_line(ramps, old, new, words):
    shards, file, _ = ramps
    with pytest.raises(RecipeError, match=words):
        load(RECIPE.replace(old, new).replace("FILE", str(file)), shards)
    broken = file.with_name("broken.npz")
    broken.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ShardError, match="no file of frame labels, or damaged"):
        read_frame_labels(str(broken))


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Half of them tones, half of them noise."""
    folder, made = tmp_path_factory.mktemp("sounds"), {}
    for n in range(8):
        tone = chirp(0.3 + n / 20, RATE, seed=n)
        noise = np.random.default_rng(n).normal(0, 0.2, tone.shape)
        made[f"s{n}.flac"] = encoded(tone if n % 2 else noise, RATE)
    return packed(folder / "in", folder / "out", made)


def test_the_command_tells_noise_from_tones_and_gives_the_same_file_again(sounds, tmp_path):
    arguments = ["frame-labels", str(sounds), "--clusters", "2", "--rate", "8000", "--shift", "160",
                 "--window", "200", "--device", "cpu"]  # fmt: skip
    for name in ("a.npz", "b.npz"):
        run = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / name)])
        assert run.exit_code == 0, run.output
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    found = read_frame_labels(str(tmp_path / "a.npz"))
    assert f"{len(found.labels):,} frames of 8 recordings" in " ".join(run.output.split())
    kinds = [set(), set()]
    for n in range(8):
        frames = 1 + (round((0.3 + n / 20) * RATE) - 200) // 160
        labels = found.at(np.array([sample_id(f"s{n}")]), np.array([0]), frames + 1)[0]
        assert labels[-1] == IGNORED
        kinds[n % 2] |= {round(labels[:-1].mean())}
    assert sorted(map(sorted, kinds)) == [[0], [1]]


def test_what_cannot_be_clustered_is_said_before_anything_is_read(sounds):
    with pytest.raises(SslpipeError, match="shift = 85 is no multiple of 10 ms, which are 80"):
        CepstraSettings(rate=8_000, shift=85)
    with pytest.raises(SslpipeError, match="50 frames are fewer than 100 clusters"):
        ClusterSettings(fit=50)
    with pytest.raises(SslpipeError, match="fewer than 5000 clusters"):
        frame_labels(
            sounds, None, None, CepstraSettings(rate=8_000, shift=160),
            ClusterSettings(classes=5000, device="cpu"),
        )  # fmt: skip
    assert longest_of(open_manifest(sounds), 16_000) == round((0.3 + 7 / 20) * 16_000)
