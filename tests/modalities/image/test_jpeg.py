"""Our own JPEG decoder: libjpeg's pixels or none."""

import io
import subprocess
import sys

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from sslpipe.errors import SampleError
from sslpipe.modalities.image import jpeg
from sslpipe.modalities.image.decode import decode

SAMPLINGS = ["444", "422", "420"]
LEFT = ["440", "411"]  # to libjpeg


@pytest.fixture(scope="module", autouse=True)
def compiled():
    jpeg.prepare()
    assert jpeg.loaded()


def picture(rng, height, width, kind="photo"):
    """Waves and noise; or noise alone; or one colour."""
    if kind == "flat":
        return np.full((height, width, 3), rng.integers(0, 256, 3), np.uint8)
    noise = rng.integers(0, 256, (height, width, 3))
    if kind == "noise":
        return noise.astype(np.uint8)
    y, x = np.mgrid[:height, :width]
    waves = [128 + 127 * np.sin(x * a + y * b) for a, b in rng.uniform(0.01, 0.6, (3, 2))]
    return (np.stack(waves, 2) * 0.8 + noise * 0.2).clip(0, 255).astype(np.uint8)


def by_libjpeg(data):
    """Its pixels; None: it refuses the file."""
    try:
        return simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False, strict=True)
    except ValueError:
        return None


def by_us(data, shape, box=jpeg.WHOLE):
    """Our pixels; None: they are left to libjpeg."""
    pixels = np.full(shape, 7, np.uint8)
    return pixels if jpeg.decode(data, pixels, box) else None


def drawn_box(rng, height, width):
    """A box as slices, and as the decoder is told it."""
    top, left = int(rng.integers(height)), int(rng.integers(width))
    below, right = int(rng.integers(top, height)) + 1, int(rng.integers(left, width)) + 1
    return np.s_[top:below, left:right], (top << 16 | left, below << 16 | right)


def saved(pixels, **settings):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **settings)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["photo", "noise", "flat"])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_pixels_are_those_of_libjpeg(sampling, kind):
    rng = np.random.default_rng(len(kind))
    for quality in (1, 20, 75, 92, 100):
        for _ in range(12):
            height, width = rng.integers(5, 100, 2)
            pixels = picture(rng, height, width, kind)
            data = simplejpeg.encode_jpeg(pixels, quality, "RGB", sampling)
            made = by_us(data, pixels.shape)
            assert made is not None
            assert (made == by_libjpeg(data)).all()


@pytest.mark.parametrize("side", range(1, 40))
def test_sides_that_are_no_whole_blocks(side):
    rng = np.random.default_rng(side)
    for sampling in SAMPLINGS:
        for height, width in ((side, 33), (33, side), (side, side)):
            data = simplejpeg.encode_jpeg(picture(rng, height, width), 85, "RGB", sampling)
            made = by_us(data, (height, width, 3))
            assert made is not None or width <= 4
            assert made is None or (made == by_libjpeg(data)).all()


@pytest.mark.parametrize("sampling", [*SAMPLINGS, "grey"])
def test_pixels_of_a_box_are_those_of_the_whole_picture(sampling):
    rng = np.random.default_rng(3)
    untouched = 0
    for _ in range(60):
        height, width = (int(side) for side in rng.integers(5, 200, 2))
        pixels = picture(rng, height, width)
        data = (
            saved(pixels[..., 0], quality=80)
            if sampling == "grey"
            else saved(pixels, quality=80, subsampling=SAMPLINGS.index(sampling))
        )
        whole = by_us(data, pixels.shape)
        for _ in range(8):
            inside, box = drawn_box(rng, height, width)
            made = by_us(data, pixels.shape, box)
            np.testing.assert_array_equal(made[inside], whole[inside])
            untouched += (made == 7).all(-1).sum() > height * width // 2
    assert untouched > 50


def test_a_box_beyond_the_picture_ends_where_it_ends():
    pixels = picture(np.random.default_rng(0), 50, 70)
    data = saved(pixels)
    whole = by_us(data, pixels.shape)
    for box in ((90 << 16 | 90, 91 << 16 | 91), (0, 90 << 16 | 90)):
        assert by_us(data, pixels.shape, box)[-1, -1].tolist() == whole[-1, -1].tolist()
    backwards = by_us(data, pixels.shape, (49 << 16 | 69, 1 << 16 | 1))
    assert backwards[0, 0].tolist() == whole[0, 0].tolist()


def test_grey_optimised_tables_and_comments():
    rng = np.random.default_rng(0)
    pixels = picture(rng, 70, 90)
    for data in (
        saved(pixels[:, :, 0]),
        saved(pixels, optimize=True),
        saved(pixels, comment="of the sea", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"),
        saved(pixels, qtables=[[255] * 64] * 2, subsampling=0),
        saved(pixels, qtables=[[1] * 64] * 2, subsampling=2),
    ):
        made = by_us(data, pixels.shape)
        assert made is not None
        assert (made == by_libjpeg(data)).all()


def test_a_look_says_the_sides_and_whether_exif_may_turn_it():
    pixels = picture(np.random.default_rng(8), 70, 90)
    turned = Image.Exif()
    turned[0x0112] = 6
    for plain in (saved(pixels), saved(pixels[:, :, 0], comment="of the sea")):
        assert jpeg.look(plain) == (70, 90)
        assert not jpeg.may_turn()
    for told in (saved(pixels, exif=turned), saved(pixels, xmp=b"<x:xmpmeta/>")):
        assert jpeg.look(told) == (70, 90)
        assert jpeg.may_turn()
    for data in (saved(pixels, progressive=True), saved(pixels)[:300], b"", b"\xff\xd8"):
        assert jpeg.look(data) is None


def test_tables_of_the_file_before_are_not_taken_for_those_of_this_one():
    rng = np.random.default_rng(1)
    files = [
        saved(picture(rng, 40, 50), quality=quality, optimize=optimize)
        for quality in (1, 50, 99)
        for optimize in (False, True)
    ]
    for number in rng.integers(0, len(files), 100):
        made = by_us(files[number], (40, 50, 3))
        assert (made == by_libjpeg(files[number])).all()


def test_other_kinds_are_left_to_libjpeg():
    rng = np.random.default_rng(2)
    pixels = picture(rng, 40, 50)
    cmyk = io.BytesIO()
    Image.fromarray(pixels).convert("CMYK").save(cmyk, "JPEG")
    kinds = [
        saved(pixels, progressive=True),
        saved(pixels, restart_marker_blocks=2),
        saved(pixels, keep_rgb=True),
        cmyk.getvalue(),
        *[simplejpeg.encode_jpeg(pixels, 85, "RGB", sampling) for sampling in LEFT],
    ]
    for data in kinds:
        assert by_us(data, pixels.shape) is None
        assert decode(data).shape == pixels.shape


def test_what_is_odd_is_left_to_libjpeg():
    rng = np.random.default_rng(3)
    whole = saved(picture(rng, 60, 80))
    for data in (
        whole[:-2],  # no end
        whole[: len(whole) // 2],
        whole[:-2] + b"\0\0" + whole[-2:],  # more bytes than blocks
        whole[:-40] + whole[-2:],  # fewer
        whole[:-2] + b"\xff\xd0" + whole[-2:],  # a marker of restarts
        b"",
        b"\xff\xd8",
        b"\xff\xd8\xff\xd9",
        b"\xff\xd8\xff\xda\0\x08\x01\0\0\0\x3f\0",
    ):
        assert by_us(data, (60, 80, 3)) is None
    assert by_us(whole + b"and more", (60, 80, 3)) is not None
    assert by_us(whole, (80, 60, 3)) is None  # not the sides that were asked for


@pytest.mark.parametrize("cut", [-2, -30])
def test_a_damaged_file_has_libjpegs_message(cut):
    whole = saved(picture(np.random.default_rng(4), 60, 80))
    with pytest.raises(SampleError, match="does not decode"):
        decode(whole[:-400] + whole[cut:])


def mutants(rng, least, most):
    """Spoiled JPEGs, 3,000 of them, with the sides that they had: from `least` up to `most`."""
    for _ in range(150):
        height, width = (int(side) for side in rng.integers(least, most, 2))
        whole = saved(
            picture(rng, height, width), quality=int(rng.integers(1, 100)),
            subsampling=int(rng.integers(3)), optimize=bool(rng.integers(2)),
        )  # fmt: skip
        for _ in range(20):
            mutant = bytearray(whole)
            for at in rng.integers(2, len(whole), rng.integers(1, 4)):
                mutant[at] = rng.integers(256)
            yield bytes(mutant), height, width


def test_mutants_that_we_take_have_the_pixels_of_libjpeg():
    taken = 0
    for mutant, height, width in mutants(np.random.default_rng(5), 5, 60):
        made = by_us(mutant, (height, width, 3))
        if made is not None:
            taken += 1
            assert (made == by_libjpeg(mutant)).all()
    assert taken > 100


def test_no_box_decides_whether_a_mutant_is_refused():
    """Codes outside a box are read as all others; what their pixels would be decides nothing."""
    rng = np.random.default_rng(6)
    taken = 0
    for mutant, height, width in mutants(rng, 20, 90):
        inside, box = drawn_box(rng, height, width)
        part = by_us(mutant, (height, width, 3), box)
        made = by_us(mutant, (height, width, 3))
        assert part is not None or made is None
        if part is not None:
            taken += 1
            np.testing.assert_array_equal(part[inside], by_libjpeg(mutant)[inside])
    assert taken > 100


def test_a_scan_that_ends_early_is_not_read_beyond_its_memory():
    wide = saved(np.zeros((16, 65_000, 3), np.uint8))
    ones = wide[: wide.rindex(b"\xff\xda") + 14] + b"\xff\0" * 3 + b"\xff\xd9"
    for data in (wide[:700] + b"\xff\xd9", ones):
        assert by_us(data, (16, 65_000, 3)) is None


def test_without_the_compiled_loops_libjpeg_decodes(monkeypatch):
    data = saved(picture(np.random.default_rng(6), 50, 60))
    expected = decode(data)
    monkeypatch.setattr(jpeg, "loaded", lambda: None)
    assert by_us(data, (50, 60, 3)) is None
    assert (decode(data) == expected).all()


def test_nothing_is_compiled_where_it_cannot_be_kept(monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    jpeg.loaded.cache_clear()
    try:
        jpeg.prepare()
        assert jpeg.loaded() is None
    finally:
        monkeypatch.undo()
        jpeg.loaded.cache_clear()


def test_decoding_imports_neither_numba_nor_torch_nor_pillow():
    code = """
import sys, numpy as np
from sslpipe.modalities.image import jpeg
from sslpipe.modalities.image.decode import decode
data = sys.stdin.buffer.read()
assert jpeg.decode(data, np.empty((50, 60, 3), np.uint8))
assert decode(data).shape == (50, 60, 3)
print({"numba", "torch", "kornia", "pydantic", "PIL"} & sys.modules.keys())
"""
    data = saved(picture(np.random.default_rng(7), 50, 60))
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    assert done.stdout == b"set()\n"
