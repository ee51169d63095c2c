"""Perceptual hashes on the sample photos: pytest tests/modalities/image/test_hashing.py"""

import io
import itertools

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy.fft import dctn

from sslpipe.modalities.image.codec import ImageCodec, perceptual_hash
from sslpipe.modalities.image.decode import decode
from sslpipe.shards import read_index, read_manifest


@pytest.fixture(scope="module")
def photos(sample):
    """The bytes of the 72 photos."""
    manifest = read_manifest(sample)
    found = []
    for shard in manifest.shards:
        data = manifest.tar(shard).read_bytes()
        for record in read_index(manifest.tar(shard)).payloads:
            found.append(data[record["offset"] :][: record["size"]])
    return found


@pytest.fixture(scope="module")
def hashes(photos):
    return [perceptual_hash(decode(photo)) for photo in photos]


def distance(one, other):
    return (one ^ other).bit_count()


def jpeg(image, quality):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def half(image):
    return image.resize((max(1, image.width // 2), max(1, image.height // 2)))


CHANGES = {  # at most so many bits, over 72 photos
    "quality 50": (lambda i: decode(jpeg(i, 50)), 4),
    "half the size": (lambda i: np.asarray(half(i)), 2),
    "both": (lambda i: decode(jpeg(half(i), 50)), 4),
    "brighter": (lambda i: np.asarray(ImageEnhance.Brightness(i).enhance(1.05)), 4),
    "flatter": (lambda i: np.asarray(ImageEnhance.Contrast(i).enhance(0.8)), 4),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_same_picture_stays_close(photos, hashes, change):
    alter, limit = CHANGES[change]
    altered = [perceptual_hash(alter(Image.fromarray(decode(photo)))) for photo in photos]
    worst = max(distance(a, b) for a, b in zip(hashes, altered, strict=True))
    assert worst <= limit


def test_different_photos_are_far(hashes):
    assert min(distance(a, b) for a, b in itertools.combinations(hashes, 2)) >= 18
    assert all(0 <= h < 2**64 for h in hashes)


def test_the_codec_hashes_bytes_of_any_format(photos, hashes):
    codec = ImageCodec()
    for photo, want in list(zip(photos, hashes, strict=True))[::6]:
        assert distance(codec.perceptual_hash(photo), want) <= 4
        file = io.BytesIO()
        Image.fromarray(decode(photo)).save(file, "PNG")
        assert distance(codec.perceptual_hash(file.getvalue()), want) <= 4


def test_pictures_of_one_colour_are_equal_and_nothing_else_is_like_them(hashes):
    flat = {perceptual_hash(np.full((h, 50, 3), v, np.uint8)) for h in (40, 99) for v in (1, 255)}
    assert flat == {1 << 63}
    assert min(distance(1 << 63, h) for h in hashes) >= 18


def test_the_bits_are_those_of_the_definition():
    """At 32 x 32 px nothing is resized: the signs of SciPy's DCT, row by row, high bit first."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    low = dctn(pixels @ np.array([0.299, 0.587, 0.114]), type=2)[:8, :8]
    bits = (low > np.median(low)).ravel()
    assert perceptual_hash(pixels) == int("".join(str(int(bit)) for bit in bits), 2)
