"""Sheets of thumbnails: pytest tests/modalities/image/test_thumbnails.py"""

import io

import numpy as np
from PIL import Image

from sslpipe.modalities.image.sheet import LETTERS, TILE, shortened, thumbnails


def photo(colour, size):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def test_every_picture_has_its_place_and_bad_ones_are_red():
    items = [
        (photo("blue", (300, 100)), ("a", "cat")),
        (photo("lime", (20, 40)), ("b", "dog")),
        (b"no picture", ("c", "none")),
    ]
    sheet = np.asarray(thumbnails(items, columns=2))
    # centres of the tiles: 6 px margins, two lines of 14 px below each tile
    across, down = TILE + 6, TILE + 2 * 14 + 6
    assert sheet.shape == (2 * down + 6, 2 * across + 6, 3)
    centre = 6 + TILE // 2
    assert sheet[centre, centre].tolist() == [0, 0, 255]
    assert sheet[centre, centre + across].tolist() == [0, 255, 0]
    assert sheet[centre + down, centre].tolist() == [255, 0, 0]
    assert sheet[centre + down, centre + across].tolist() == [255, 255, 255]
    captions = sheet[6 + TILE : down, 6 : 6 + TILE]
    assert (captions < 100).any()


def test_long_captions_keep_their_end():
    assert shortened("x" * LETTERS) == "x" * LETTERS
    long = shortened("folder/" * 9 + "000123")
    assert long.endswith("000123")
    assert len(long) == LETTERS
