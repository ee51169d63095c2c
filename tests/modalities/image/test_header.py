"""Sizes from headers: pytest tests/modalities/image/test_header.py"""

import io

import numpy as np
import pytest
from PIL import Image

from sslpipe.errors import SampleError
from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.modalities.image.decode import decode

read_size = ImageCodec().extent
KINDS = ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"]


def encoded(kind, orientation=1, mode="RGB"):
    image = Image.fromarray(np.zeros((30, 40, 3), np.uint8)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, kind, **({} if kind in ("BMP", "GIF") else {"exif": exif}))
    return file.getvalue()


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_the_size_is_that_of_the_decoded_picture(kind, orientation):
    data = encoded(kind, orientation)
    height, width, _ = decode(data).shape
    assert read_size(data) == (height, width)


def test_odd_jpegs_have_a_size_too():
    for mode in ("L", "CMYK"):
        assert read_size(encoded("JPEG", 6, mode)) == (40, 30)


@pytest.mark.parametrize("kind", ["JPEG", "BMP", "GIF"])
def test_only_the_header_is_needed(kind):
    data = encoded(kind)
    with pytest.raises(SampleError):
        decode(data[: len(data) - 20])
    assert read_size(data[: len(data) - 20]) == (30, 40)


@pytest.mark.parametrize("data", [b"", b"no picture", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"])
def test_what_has_no_header_is_refused(data):
    with pytest.raises(SampleError, match=r"is no readable JPEG|is empty|is text|cut or damaged"):
        read_size(data)


def test_more_pixels_than_are_decoded_are_refused():
    file = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(file, "PNG")
    with pytest.raises(SampleError, match="the limits are"):
        read_size(file.getvalue())
