"""Film strips on paper, clips that move, thumbnails; and the commands that draw them."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image, ImageSequence

import sslpipe
from sslpipe.cli.commands import app
from sslpipe.modalities.sheets import draw_sheet, files_beside
from sslpipe.modalities.video.sheet import GREY, HEAD, MARGIN, strips_of, thumbnail, thumbnails
from sslpipe.recipe import parse_recipe

from .films import film, read
from .test_pipeline import RECIPE


@pytest.fixture(scope="module")
def made(videos):
    recipe = parse_recipe(RECIPE, path="video.yaml")
    with sslpipe.load(recipe, shards=videos, device="cpu", rank=0, world_size=1) as pipe:
        share = pipe.load_share(0)
        yield pipe, share, pipe.make_batch(share, 0)


def test_strips_show_the_views_and_grey_what_masks_hide(made):
    pipe, _, batch = made
    (part,) = pipe.parts
    first, second, masked = strips_of(batch, pipe.spec, part.decider, 0)
    numbers = batch.params["global"][:, 0, :4].long().tolist()
    for strip, view, told in zip(
        (first, second), batch.views["global"][:, 0], numbers, strict=True
    ):
        levels = (view.permute(1, 2, 3, 0) * 255).round().numpy()
        np.testing.assert_allclose(strip.frames_THWC, levels, atol=1)
        assert strip.captions == [f"frame {number}" for number in told]
    hidden = (
        batch.masks["tube"][0, 0].reshape(2, 4, 4).numpy().repeat(2, 0).repeat(8, 1).repeat(8, 2)
    )
    assert (masked.frames_THWC[hidden] == GREY).all()
    np.testing.assert_array_equal(masked.frames_THWC[~hidden], first.frames_THWC[~hidden])
    assert "24 of 32" in masked.words


def test_a_sheet_has_a_band_for_each_sample_and_a_picture_that_moves(made):
    pipe, share, batch = made
    one, three = (
        draw_sheet(pipe.parts, batch, pipe.spec, share.columns, rows=rows) for rows in (1, 3)
    )
    assert (three.height - MARGIN) == 3 * (one.height - MARGIN)
    assert np.asarray(one)[:, HEAD:].min() < 100  # there are pictures
    files = files_beside(pipe.parts, batch, pipe.spec, share.columns, rows=2)
    moving = Image.open(io.BytesIO(files["webp"]))
    assert moving.n_frames == 4
    shown = [
        np.asarray(frame.convert("RGB")).astype(int) for frame in ImageSequence.Iterator(moving)
    ]
    assert any(abs(a - b).max() > 100 for a, b in itertools.pairwise(shown))


def test_thumbnails_are_the_first_middle_and_last_frame():
    strip = thumbnail(film(30), ["key", "label"])
    assert read(strip.frames_THWC) == [0, 15, 29]
    assert strip.captions == ["frame 0", "frame 15", "frame 29"]
    bad = thumbnail(film(30)[:500], ["key"])
    assert bad.captions == ["does not decode"]
    picture = thumbnails([(film(3), ["a"]), (b"", ["b"])])
    assert picture.mode == "RGB"


def test_show_writes_a_picture_and_a_moving_one(videos, tmp_path, monkeypatch, capsys):
    recipe = tmp_path / "clips.yaml"
    recipe.write_text(RECIPE)
    out = tmp_path / "views.png"
    app(["show", str(recipe), "--shards", str(videos), "--out", str(out), "--rows", "2"],
        standalone_mode=False)  # fmt: skip
    said = capsys.readouterr().out
    with Image.open(out) as still, Image.open(tmp_path / "views.webp") as moving:
        assert still.width > HEAD
        assert moving.n_frames == 4
    assert "2 x 4 frames x 32 x 32: CenterCrop; DenseClip" in said
    assert "views.webp" in said.replace("\n", "")
