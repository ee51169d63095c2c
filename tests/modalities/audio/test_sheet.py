"""What `show` and `inspect` draw of sound, and what can be heard of it."""

import io

import numpy as np
import soundfile
from typer.testing import CliRunner

from sslpipe.cli.commands import app
from sslpipe.modalities.audio.sheet import EDGE, WAVE, WIDTH, thumbnails
from sslpipe.modalities.sheets import draw_sheet, files_beside

from .sounds import chirp, encoded, load, packed
from .test_stream import RECIPE


def shards_of(tmp_path):
    sounds = {f"{n}.wav": encoded(chirp(0.2 + 0.2 * n, seed=n), kind="wav") for n in range(4)}
    return packed(tmp_path / "in", tmp_path / "out", sounds)


def drawn(shards, recipe=RECIPE):
    with load(recipe, shards, "stream.batch_size=4") as pipe:
        share = pipe.load_share(0)
        batch = pipe.make_batch(share, 0)
        sheet = draw_sheet(pipe.parts, batch, pipe.spec, share.columns, rows=4)
        files = files_beside(pipe.parts, batch, pipe.spec, share.columns, rows=4)
    return batch, np.array(sheet), files


def test_hidden_frames_are_red_and_the_end_of_sound_is_green(tmp_path):
    batch, sheet, _ = drawn(shards_of(tmp_path))
    assert sheet.shape[1] == 3 * (WIDTH + 6) + 6
    bands = np.linspace(6, len(sheet), 4, endpoint=False).astype(int)
    for row, top in enumerate(bands):
        tile = sheet[top + 20 : top + 18 + WAVE, 6 : 6 + WIDTH].astype(int)
        red = (tile[..., 0] - tile[..., 2] > 60).any(0)
        frames = np.arange(WIDTH) * 6_000 // WIDTH // 320
        hidden = batch.masks["spans"][0, row].numpy()
        assert (red == hidden[np.minimum(frames, len(hidden) - 1)]).mean() > 0.97
        green = (tile == np.array(EDGE)).all(-1).any(0)
        real = int(batch.lengths["wave"][0, row])
        assert green.any() == (real < 6_000)


def test_what_is_heard_is_what_is_seen(tmp_path):
    batch, _, files = drawn(shards_of(tmp_path))
    assert sorted(files) == ["global.wav", "wave.wav"]
    sound, rate = soundfile.read(io.BytesIO(files["wave.wav"]), dtype="float32")
    views = batch.views["wave"][0].numpy()
    peak = max(1.0, float(np.abs(views).max()))
    assert rate == 16_000
    assert len(sound) == 4 * (6_000 + 4_000)
    np.testing.assert_allclose(sound[:6_000], views[0] / peak, atol=1 / 32_768)
    assert not sound[6_000:10_000].any()
    sound, rate = soundfile.read(io.BytesIO(files["global.wav"]), dtype="float32")
    assert (rate, len(sound)) == (8_000, 8 * (3_200 + 2_000))


def test_show_writes_both(tmp_path):
    recipe, out = tmp_path / "r.yaml", tmp_path / "look.png"
    recipe.write_text(RECIPE)
    arguments = ["show", str(recipe), "--shards", str(shards_of(tmp_path)), "--out", str(out)]
    run = CliRunner().invoke(app, [*arguments, "--rows", "2"])
    assert run.exit_code == 0, run.output
    written = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert written == {"r.yaml", "look.png", "look.wave.wav", "look.global.wav"}


def test_thumbnails_are_waveforms():
    picture = np.array(
        thumbnails([(encoded(chirp(0.5)), ["a", "b"]), (encoded(chirp(1.0)), ["c"])])
    )
    dark = (picture.astype(int).sum(-1) < 500).any(0)
    assert dark[20:470].all()  # along both of them
    assert dark[500:960].all()
