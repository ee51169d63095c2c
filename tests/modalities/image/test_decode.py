"""Decoding rules: pytest tests/modalities/image/test_decode.py"""

import io
import warnings
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from sslpipe.device.buffers import Buffers
from sslpipe.errors import SampleError
from sslpipe.modalities.image import headers, jpeg
from sslpipe.modalities.image.decode import decode, jpeg_orientation, scale_factor, shrink
from sslpipe.modalities.image.other_formats import orientation_in


def smooth(height=48, width=64):
    """A colour ramp: JPEG keeps it within a few levels."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, 255 - x * 255 // width], -1).astype("u1")


def encode(image, kind="PNG", **settings):
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def exif(orientation, order="<"):
    tags = Image.Exif()
    tags.endian = order
    tags[0x0112] = orientation
    return tags.tobytes()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "GIF"])
def test_lossless_formats_decode_exactly(kind):
    pixels = smooth() // 64 * 64  # few colours, so that GIF is lossless too
    settings = {"lossless": True} if kind == "WEBP" else {}
    canvas = decode(encode(pixels, kind, **settings))
    np.testing.assert_array_equal(canvas, pixels)
    assert canvas.dtype == np.uint8
    assert canvas.flags.c_contiguous
    assert canvas.flags.writeable


def with_exif(data, tags):
    """A JPEG with an EXIF segment put in front; its entropy-coded bytes stay the same."""
    return data[:2] + b"\xff\xe1" + (len(tags) + 2).to_bytes(2, "big") + tags + data[2:]


def of_pillow(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpegs_decode_as_pillow_decodes_them(progressive, subsampling):
    settings = {"progressive": progressive, "subsampling": subsampling}
    data = encode(smooth(), "JPEG", quality=95, **settings)
    np.testing.assert_array_equal(decode(data), of_pillow(data))


@pytest.mark.parametrize(
    ("shorter", "size", "factor"),
    [(375, 128, 1), (511, 128, 1), (512, 128, 2), (1024, 128, 4), (1023, 128, 2),
     (2048, 128, 8), (9000, 128, 8), (7, 8, 1)],
)  # fmt: skip
def test_large_jpegs_are_decoded_at_a_scale_that_loses_nothing(shorter, size, factor):
    assert scale_factor(shorter, size) == factor
    assert factor == 1 or shorter // factor >= 2 * size


@pytest.mark.parametrize("factor", [2, 4, 8])
@pytest.mark.parametrize(("extra", "levels"), [(0, 0.5), (5, 5)])
def test_scaled_decoding_shows_the_same_picture(factor, extra, levels):
    """Against decoding everything and shrinking it; 5 px more: a stretch of under half a pixel."""
    rng = np.random.default_rng(0)
    height, width = 128 * factor + extra, 160 * factor + extra
    small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    picture = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))
    data = encode(picture, "JPEG", quality=95)
    made = decode(data, size=64)
    want = shrink(decode(data), 64)
    assert made.shape == want.shape
    assert min(made.shape[:2]) == 64
    assert np.abs(made.astype(int) - want).mean() < levels


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_exif_orientation_as_pillow_applies_it(kind, orientation, order):
    settings = {"lossless": True} if kind == "WEBP" else {}
    tags = exif(orientation, order) if kind != "TIFF" else exif(orientation)
    data = encode(smooth(), kind, exif=tags, **settings)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    canvas = decode(data)
    assert canvas.shape[:2] == ((48, 64) if orientation < 5 else (64, 48))
    np.testing.assert_array_equal(canvas, upright)
    assert canvas.flags.c_contiguous


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_of_jpegs_as_pillow_applies_it(orientation, order):
    plain = encode(smooth(), "JPEG")
    lying = Image.fromarray(decode(plain))
    lying.getexif()[0x0112] = orientation
    canvas = decode(with_exif(plain, exif(orientation, order)))
    np.testing.assert_array_equal(canvas, ImageOps.exif_transpose(lying))
    assert canvas.flags.c_contiguous


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_guess_of_the_sides_right_or_wrong_changes_no_pixel(orientation):
    turned = with_exif(encode(smooth(), "JPEG"), exif(orientation))
    png = encode(smooth(), "PNG")
    for data in (turned, png, encode(smooth(), "JPEG", progressive=True)):
        for size in (None, 16, 40):
            expected = decode(data, size=size)
            for guess in (
                (48, 64),
                (64, 48),
                (1, 1),
                (0, 64),
                (64, 0),
                (65_535, 65_535),
                (2**32 - 1,) * 2,
            ):
                np.testing.assert_array_equal(decode(data, size=size, guess=guess), expected)


def test_a_jpeg_whose_sides_were_guessed_lies_where_it_was_decoded(monkeypatch):
    jpeg.prepare()
    data, given = encode(smooth(), "JPEG"), []

    class Kept(Buffers):
        def empty(self, shape, dtype):
            given.append(super().empty(shape, dtype))
            return given[-1]

    assert decode(data, buffers=Kept()) is given[0]  # neither copied nor looked at as another
    monkeypatch.setattr(jpeg, "look", lambda _: pytest.fail("its header is read once more"))
    assert decode(data, buffers=Kept(), guess=(48, 64)) is given[1]


def test_exif_is_found_after_other_segments_and_fill_bytes_but_not_in_the_scan():
    plain, tags = encode(smooth(), "JPEG"), exif(6)
    other = b"\xff\xe1\0\x20http://ns.adobe.com/xap/1.0/\0\0"
    filled = b"\xff\xe2\0\x05abc\xff\xff"
    segment = with_exif(plain, tags)[2 : len(with_exif(plain, tags)) - len(plain) + 2]
    assert jpeg_orientation(plain[:2] + other + filled + segment + plain[2:]) == 6
    assert jpeg_orientation(plain + segment) == 1
    for cut in range(40):
        assert jpeg_orientation((plain[:2] + other)[:cut]) == 1


@pytest.mark.parametrize("tags", [b"Exif\0\0II*\0", b"Exif\0\0garbage", exif(99)])
def test_damaged_exif_does_not_cost_the_image(tags):
    assert decode(encode(smooth(), "JPEG", exif=tags)).shape == (48, 64, 3)
    assert orientation_in({"exif": tags}) == 1


def test_cmyk_jpeg_has_the_colours_of_pillow():
    data = encode(Image.fromarray(smooth()).convert("CMYK"), "JPEG", quality=95)
    assert simplejpeg.decode_jpeg_header(data)[2] == "CMYK"
    assert np.abs(decode(data).astype(int) - smooth()).mean() < 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_grey_becomes_three_equal_channels(kind):
    grey = smooth()[..., 0]
    canvas = decode(encode(grey, kind))
    assert canvas.shape == (48, 64, 3)
    assert (canvas == canvas[..., :1]).all()
    assert np.abs(canvas[..., 0].astype(int) - grey).max() <= 4


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_keep_the_high_byte(kind):
    levels = np.array([[0, 255, 256, 32767, 65535]], np.uint16)
    canvas = decode(encode(Image.fromarray(levels), kind))
    np.testing.assert_array_equal(canvas[0, :, 1], [0, 0, 1, 127, 255])


@pytest.mark.parametrize("mode", ["F", "I"])
def test_32_bit_pixels_are_refused(mode):
    with pytest.raises(SampleError, match="32-bit pixels"):
        decode(encode(Image.new(mode, (4, 4)), "TIFF"))


def test_palette_gives_its_colours():
    image = Image.fromarray(smooth()).quantize(8)
    np.testing.assert_array_equal(decode(encode(image)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_laid_on_white(kind):
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 0] = 200
    pixels[0, :, 3] = [255, 0, 51]  # opaque, clear, a fifth
    settings = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    canvas = decode(encode(pixels, kind, **settings))
    np.testing.assert_array_equal(canvas[0], [[200, 0, 0], [255, 255, 255], [244, 204, 204]])


def test_transparent_colour_of_palette_grey_and_rgb():
    for mode, clear in (("P", 0), ("L", 0), ("RGB", (0, 0, 0)), ("1", 0)):
        image = Image.new(mode, (2, 1), clear)
        assert decode(encode(image, transparency=clear)).tolist() == [[[255] * 3] * 2], mode


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "PNG"):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
        assert decode(data)[0, 0].tolist() == [255, 0, 0]


def test_size_shrinks_the_shorter_side_and_never_enlarges():
    data = encode(smooth(48, 64))
    assert decode(data, size=24).shape == (24, 32, 3)
    assert decode(data, size=47).shape == (47, 63, 3)
    assert decode(data, size=48).shape == (48, 64, 3)
    assert decode(data, size=500).shape == (48, 64, 3)
    assert decode(encode(smooth(2, 300)), size=1).shape == (1, 150, 3)


def test_shrinking_is_pillows_antialiased_bicubic():
    noise = np.random.default_rng(0).integers(0, 256, (120, 90, 3), np.uint8)
    expected = Image.fromarray(noise).resize((30, 40), Image.Resampling.BICUBIC)
    difference = decode(encode(noise), size=30).astype(int) - np.asarray(expected)
    assert np.abs(difference).max() <= 1


def test_shrinking_and_turning_commute():
    data = encode(smooth(), "JPEG", quality=95, exif=exif(6))
    upright = encode(decode(data))
    difference = decode(data, size=20).astype(int) - decode(upright, size=20)
    assert np.abs(difference).max() <= 1


def noise(kind, **settings):
    return encode(
        np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8), kind, **settings
    )


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.95])
def test_truncated_files_are_refused(kind, part):
    data = noise(kind)
    with pytest.raises(SampleError):
        decode(data[: int(len(data) * part)])


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"hello", b"\0" * 500, b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_refused_with_a_reason(data):
    reasons = set()
    for _ in range(2):
        with pytest.raises(SampleError, match=r"\w+") as caught:
            decode(data)
        reasons.add(str(caught.value))
    assert len(reasons) == 1  # no memory addresses: reports must be reproducible


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_damage_raises_sample_errors_only_and_never_warns(kind):
    rng = np.random.default_rng(7)
    data = np.frombuffer(noise(kind, exif=exif(3)), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(60):
            damaged = data.copy()
            damaged[rng.integers(0, min(400, len(data)), 4)] = rng.integers(0, 256, 4)
            try:
                canvas = decode(damaged.tobytes())
            except SampleError:
                continue
            assert canvas.ndim == 3


def test_a_sound_image_with_damaged_metadata_is_good_under_any_warning_filter():
    data = encode(smooth())
    chunk = b"acTL" + bytes(8)  # an animation of no frames: Pillow warns
    chunk = (8).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    animated = data[:33] + chunk + data[33:]  # after signature and IHDR
    with pytest.warns(UserWarning, match="Invalid APNG"):
        Image.open(io.BytesIO(animated)).close()
    for action in ("error", "always"):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter(action)
            np.testing.assert_array_equal(decode(animated), smooth())
        assert seen == []


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_bombs_are_refused_before_decoding(kind, monkeypatch):
    monkeypatch.setattr(headers, "MAX_PIXELS", 48 * 64 - 1)
    with pytest.raises(SampleError, match=r"64 x 48 pixels; the limits are 3,071"):
        decode(encode(smooth(), kind))


def test_a_side_that_the_index_cannot_hold_is_refused():
    with pytest.raises(SampleError, match="70,000 x 1"):
        decode(encode(Image.new("1", (70_000, 1))))


def test_formats_outside_the_list_are_refused():
    with pytest.raises(SampleError):
        decode(encode(smooth(), "PPM"))
