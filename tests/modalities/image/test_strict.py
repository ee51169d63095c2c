"""Damage is refused by every route: pytest tests/modalities/image/test_strict.py"""

import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from sslpipe.errors import SampleError
from sslpipe.modalities.image import strict
from sslpipe.modalities.image.decode import decode

TRIES = 40


def photo(mode="RGB", sides=(128, 96)):
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    return small.resize(sides).convert(mode)


def encoded(mode, kind, **settings):
    file = io.BytesIO()
    photo(mode).save(file, kind, **settings)
    return file.getvalue()


GOOD = {
    "rgb": encoded("RGB", "JPEG"),
    "cmyk": encoded("CMYK", "JPEG"),
    "tiff": encoded("RGB", "TIFF", compression="jpeg"),
    "cmyk tiff": encoded("CMYK", "TIFF", compression="jpeg"),
}


def scan_of(data):
    """Begin and end of the entropy-coded bytes of the last scan."""
    at = data.rindex(b"\xff\xda") + 14
    return at, data.index(b"\xff\xd9", at)


def half_zeroed(data):
    at, end = scan_of(data)
    middle = (at + end) // 2
    return data[:middle] + bytes(end - middle) + data[end:]


def ended_early(data):
    at, end = scan_of(data)
    middle = (at + end) // 2
    return data[:middle] + b"\xff\xd9" + bytes(end - middle) + data[end + 2 :]


def three_random(data, seed):
    at, end = scan_of(data)
    rng, damaged = np.random.default_rng(seed), bytearray(data)
    for place in rng.integers(at, end, 3):
        damaged[place] = rng.integers(0, 255)
    return bytes(damaged)


def refused(data):
    try:
        decode(data)
    except SampleError:
        return True
    return False


@pytest.mark.parametrize("damage", [half_zeroed, ended_early])
@pytest.mark.parametrize("kind", GOOD)
def test_a_scan_that_lacks_its_half_is_refused(kind, damage, capfd):
    assert decode(GOOD[kind]).shape == (96, 128, 3)
    with pytest.raises(SampleError, match=r"does not decode: .*premature end of data"):
        decode(damage(GOOD[kind]))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["cmyk", "tiff", "cmyk tiff"])
def test_random_bytes_are_found_as_often_as_by_the_fast_decoder(kind):
    fast = sum(refused(three_random(GOOD["rgb"], seed)) for seed in range(TRIES))
    slow = sum(refused(three_random(GOOD[kind], seed)) for seed in range(TRIES))
    assert fast >= TRIES // 4  # what is still a code of Huffman's cannot be seen
    assert slow >= TRIES // 5


def test_a_cmyk_jpeg_of_too_many_scans_is_refused():
    data = encoded("CMYK", "JPEG", progressive=True)
    at = data.rindex(b"\xff\xda")
    with pytest.raises(SampleError, match="scans; the limit is 100"):
        decode(data[:at] + b"\xff\xda" * 200 + data[at:])


def spoiled(compression):
    """A TIFF of which libtiff complains: its pixels are no such stream."""
    data = encoded("RGB", "TIFF", compression=compression)
    with Image.open(io.BytesIO(data)) as image:
        at, size = image.tag_v2[273][0], image.tag_v2[279][0]
    return data[:at] + b"\x99" * size + data[at + size :]


@pytest.mark.skipif(not strict.loaded_library("libtiff"), reason="libtiff is not found here")
@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "jpeg"])
def test_what_libtiff_would_print_is_the_reason(compression, capfd):
    with pytest.raises(SampleError, match=r"does not decode: (Using code not yet|ZIP|JPEG)"):
        decode(spoiled(compression))
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not strict.loaded_library("libtiff"), reason="libtiff is not found here")
def test_threads_hear_their_own_errors():
    bad = [spoiled("tiff_lzw"), spoiled("tiff_adobe_deflate"), GOOD["tiff"]] * 20

    def words(data):
        try:
            return decode(data).shape
        except SampleError as error:
            return str(error).split()[3][:3]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(words, bad)) == ["Usi", "ZIP", (96, 128, 3)] * 20


def test_an_odd_sampling_is_left_to_pillow(monkeypatch):
    def unknown(data):
        raise ValueError("Could not determine subsampling level of JPEG")

    monkeypatch.setattr(strict.simplejpeg, "decode_jpeg_header", unknown)
    assert decode(GOOD["rgb"]).shape == (96, 128, 3)


def test_a_png_without_its_end_mark_is_refused_and_late_texts_are_not_lost_in_silence():
    """Found by tools/fuzz.py: cut behind the pixels, a picture lay on its side without a word."""
    turned = Image.Exif()
    turned[0x0112] = 6
    whole = encoded("RGB", "PNG", exif=turned)
    at = whole.index(b"eXIf") - 4
    text = whole[at : at + 12 + int.from_bytes(whole[at : at + 4])]
    late = whole.replace(text, b"")[:-12] + text + whole[-12:]
    assert decode(late).shape == (128, 96, 3)
    for cut in (len(late) - 12, len(late) - 12 - len(text), len(late) - 1):
        with pytest.raises(SampleError, match="ends before its end mark"):
            decode(late[:cut])
    assert decode(late + b"what follows").shape == (128, 96, 3)


@pytest.mark.parametrize("kind", ["rgb", "cmyk"])
def test_the_look_at_scans_says_what_decoding_says(kind):
    """One strictness: `check_jpeg`, for what Pillow decodes, and the decoder of RGB itself."""
    cases = [three_random(GOOD[kind], seed) for seed in range(2 * TRIES)]

    def found(data):
        try:
            strict.check_jpeg(data)
        except ValueError:
            return True
        return False

    told = [found(data) for data in cases]
    assert told == [refused(data) for data in cases]
    assert 0 < sum(told) < len(told)


def test_grey_and_cmyk_of_several_pictures_are_looked_at_too(capfd):
    for mode in ("L", "CMYK"):
        file = io.BytesIO()
        photo(mode).save(file, "MPO", save_all=True, append_images=[photo(mode)])
        data = file.getvalue()
        assert decode(data).shape == (96, 128, 3)
        at = data.index(b"\xff\xda") + 400
        with pytest.raises(SampleError, match="does not decode"):
            decode(data[:at] + bytes(600) + data[at + 600 :])


def test_decoding_needs_neither_torch_nor_kornia_nor_pydantic():
    heavy = "{'torch', 'kornia', 'pydantic'}"
    code = f"import sys, sslpipe.modalities.image.decode; print(*{heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("", "")
