"""The codec for packing: pytest tests/modalities/image/test_codec.py"""

import io
import re

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from sslpipe.errors import SampleError
from sslpipe.modalities.image.codec import GPU_JPEG, ImageCodec

CODEC = ImageCodec()


def encoded(mode="RGB", kind="PNG", **settings):
    y, x = np.mgrid[0:60, 0:90]
    pixels = np.stack([x * 2, y * 4, x + y], -1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **settings)
    return file.getvalue()


def test_inspect_gives_height_and_width_of_the_upright_image():
    assert CODEC.inspect(encoded()) == (60, 90)
    turned = Image.Exif()
    turned[0x0112] = 6
    assert CODEC.inspect(encoded(kind="JPEG", exif=turned.tobytes())) == (90, 60)


def test_inspect_decodes_everything():
    data = encoded(kind="JPEG")
    with pytest.raises(SampleError):
        CODEC.inspect(data[:-20])


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1"])
def test_shrink_makes_baseline_rgb_jpegs(mode):
    jpeg = CODEC.shrink(encoded(mode), side=30, quality=90)
    assert simplejpeg.decode_jpeg_header(jpeg) == (30, 45, "YCbCr", "420")
    assert CODEC.flags(jpeg) == GPU_JPEG


def test_shrink_never_enlarges_and_keeps_the_picture():
    jpeg = CODEC.shrink(encoded(), side=500, quality=95)
    assert CODEC.inspect(jpeg) == (60, 90)
    y, x = np.mgrid[0:60, 0:90]
    decoded = simplejpeg.decode_jpeg(jpeg).astype(int)
    assert np.abs(decoded - np.stack([x * 2, y * 4, x + y], -1)).mean() < 2


def test_shrink_turns_upright_and_drops_the_tag():
    turned = Image.Exif()
    turned[0x0112] = 8
    jpeg = CODEC.shrink(encoded(kind="JPEG", exif=turned.tobytes()), side=30, quality=90)
    assert b"Exif" not in jpeg
    assert CODEC.inspect(jpeg) == (45, 30)


def test_quality_counts():
    low, high = (CODEC.shrink(encoded(), side=30, quality=q) for q in (30, 95))
    assert len(low) < len(high)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_the_header_says_what_decoding_finds(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(kind=kind, exif=exif) if kind not in ("GIF", "BMP") else encoded(kind=kind)
    assert CODEC.extent(data) == CODEC.inspect(data)


def test_the_header_alone_is_looked_at_and_limits_count():
    jpeg = encoded(kind="JPEG")
    assert CODEC.extent(jpeg[:-20]) == (60, 90)
    at = jpeg.index(b"\xff\xc0") + 5
    huge = jpeg[:at] + (60_000).to_bytes(2, "big") * 2 + jpeg[at + 4 :]
    with pytest.raises(SampleError, match="60,000 x 60,000 pixels; the limits"):
        CODEC.extent(huge)
    with pytest.raises(SampleError):
        CODEC.extent(b"I am no image")


def test_the_version_names_what_makes_the_pixels():
    assert re.fullmatch(r"torch [\d.]+\S*, simplejpeg [\d.]+, pillow [\d.]+", CODEC.version)


@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("side", [60, 61])
def test_shrink_passes_on_what_needs_no_change(side, subsampling):
    data = encoded(kind="JPEG", quality=97, subsampling=subsampling)
    assert CODEC.shrink(data, side=side, quality=50) is data


def tagged(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


@pytest.mark.parametrize(
    "data",
    [encoded(kind="JPEG", progressive=True), encoded("L", "JPEG"), encoded("CMYK", "JPEG"),
     encoded(kind="JPEG", exif=tagged(3)), encoded(kind="JPEG", keep_rgb=True), encoded()],
    ids=["progressive", "grey", "cmyk", "turned", "not YCbCr", "png"],
)  # fmt: skip
def test_shrink_encodes_anew_what_is_no_baseline_jpeg(data):
    jpeg = CODEC.shrink(data, side=500, quality=90)
    assert simplejpeg.decode_jpeg_header(jpeg) == (60, 90, "YCbCr", "420")
    assert CODEC.flags(jpeg) == GPU_JPEG
    assert jpeg != data


def test_what_passes_unchanged_was_decoded_too():
    data = encoded(kind="JPEG")
    with pytest.raises(SampleError):
        CODEC.shrink(data[:-20], side=500, quality=90)


def test_flags_mark_baseline_jpegs_of_three_components():
    def jpeg(mode, **settings):
        file = io.BytesIO()
        Image.new(mode, (8, 8)).save(file, "JPEG", **settings)
        return file.getvalue()

    base = jpeg("RGB")
    assert CODEC.flags(base)
    assert CODEC.flags(base[:2] + b"\xff\xff" + base[2:][1:])  # fill byte
    assert not CODEC.flags(jpeg("RGB", progressive=True))
    assert not CODEC.flags(jpeg("L"))
    assert not CODEC.flags(jpeg("CMYK"))
    assert not CODEC.flags(encoded())
    assert not any(CODEC.flags(base[:n]) for n in range(100))
