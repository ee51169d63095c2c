"""One test per rule of decoding, against Pillow by hand."""

import io
import resource
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from sslpipe.errors import SampleError
from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.modalities.image.decode import decode
from sslpipe.modalities.image.headers import FORMATS, MAX_SCANS, explain, sniff

CODEC = ImageCodec()
KINDS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "TIFF", "BMP")


def smooth(height=48, width=64):
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, 255 - x * 255 // width], -1).astype("u1")


def encode(image, kind="PNG", **settings):
    file = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(file, kind, **settings)
    return file.getvalue()


def refused(data):
    with pytest.raises(SampleError) as caught:
        decode(data)
    return str(caught.value)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth, colour, rows, *extra):
    """A PNG by hand: Pillow writes no 16-bit colour."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = b"".join(b"\0" + row for row in rows)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(body)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in chunks)


def tiff(width, height, bits, data, **tags):
    """An uncompressed TIFF by hand; `bits` per channel."""
    known = {"compression": 1, "photometric": 2 if len(bits) == 3 else 1, **tags}
    at = 8 + 2 + 9 * 12 + 4
    entries = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, len(bits), at),
        (259, 3, 1, known["compression"]), (262, 3, 1, known["photometric"]),
        (273, 4, 1, at + 2 * len(bits)), (277, 3, 1, len(bits)), (278, 4, 1, height),
        (279, 4, 1, len(data)),
    ]  # fmt: skip
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4)
    return head + struct.pack(f"<{len(bits)}H", *bits) + data


@pytest.mark.parametrize("kind", KINDS)
def test_the_content_tells_the_format_and_the_extension(kind):
    data = encode(smooth(), kind)
    assert sniff(data) == kind
    assert CODEC.extension(data) == FORMATS[kind]
    assert {*FORMATS} == {*KINDS}
    assert FORMATS[kind] in CODEC.extensions


def test_avif_shows_the_picture():
    data = encode(smooth(), "AVIF", quality=95)
    want = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode(data), want)
    assert np.abs(decode(data).astype(int) - smooth()).mean() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_avif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    data = encode(smooth(), "AVIF", exif=tags)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    np.testing.assert_array_equal(decode(data), upright)
    assert decode(data).shape[:2] == ((48, 64) if orientation < 5 else (64, 48))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "AVIF", "TIFF"])
def test_first_frame_of_animations_and_first_page(kind):
    colours = [(200, 20, 20), (20, 20, 200), (20, 200, 20)]
    frames = [Image.new("RGB", (16, 16), colour) for colour in colours]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert np.abs(decode(data).astype(int) - colours[0]).max() <= 6


def test_sixteen_bits_of_colour_keep_the_high_byte():
    levels = np.array([[[0, 255, 256], [32767, 65535, 1000]]], np.uint16)
    want = (levels >> 8).astype(np.uint8)
    assert decode(png(2, 1, 16, 2, [levels.astype(">u2").tobytes()])).tolist() == want.tolist()
    assert decode(tiff(2, 1, (16, 16, 16), levels.tobytes())).tolist() == want.tolist()
    clear = np.array([[[0, 0, 0, 0], [65535, 0, 256, 65535]]], ">u2")
    assert decode(png(2, 1, 16, 6, [clear.tobytes()])).tolist() == [[[255] * 3, [255, 0, 1]]]


def test_grey_with_alpha_and_palette_with_alpha_lie_on_white():
    grey = Image.fromarray(np.array([[[100, 255], [100, 0]]], np.uint8), "LA")
    assert decode(encode(grey)).tolist() == [[[100] * 3, [255] * 3]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert decode(encode(palette, transparency=bytes([255, 0]))).tolist() == [
        [[10, 20, 30], [255, 255, 255]]
    ]


def on_white(pixels, depth, key):
    """Every pixel by hand: white if it is the key at its full depth, else its high byte."""

    def shown(level):
        return level >> 8 if depth == 16 else level * 255 // (2**depth - 1)

    return [
        [[255] * 3 if pixel == key else [shown(level) for level in pixel * (3 // len(pixel))]
         for pixel in row]
        for row in pixels
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("depth", "colour"), [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2)]
)
def test_only_the_transparent_colour_is_white_at_any_depth(depth, colour):
    rng, channels = np.random.default_rng(depth), 3 if colour else 1
    near = 2 if colour else 2**depth  # few levels, so that colours repeat
    base = [0x1234, 0x1235, 0x1334, 0x3412] if depth == 16 else range(near)
    levels = rng.choice(np.array(base), (12, 16, channels))
    pixels = [[[int(level) for level in pixel] for pixel in row] for row in levels]
    if depth == 16:
        rows = [row.astype(">u2").tobytes() for row in levels]
    else:
        bits = (levels[..., None] >> np.arange(depth)[::-1] & 1).astype(np.uint8)
        rows = [np.packbits(row).tobytes() for row in bits.reshape(12, -1)]
    for key in {tuple(pixel) for row in pixels for pixel in row}:
        clear = (b"tRNS", struct.pack(f">{channels}H", *key))
        data = png(16, 12, depth, colour, rows, clear)
        assert decode(data).tolist() == on_white(pixels, depth, list(key)), key


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_as_pillow_converts_it(kind):
    data = encode(Image.fromarray(smooth()).convert("CMYK"), kind)
    want = Image.open(io.BytesIO(data))
    assert want.mode == "CMYK"
    np.testing.assert_array_equal(decode(data), want.convert("RGB"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", [0.05, 0.5, 0.9])
def test_cut_files_are_refused_with_a_reason(kind, part):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    data = encode(noise, kind)
    reason = refused(data[: int(len(data) * part)])
    assert reason
    assert "0x" not in reason  # no memory addresses


@pytest.mark.parametrize("kind", KINDS)
def test_a_lying_name_changes_nothing(kind):
    """Bytes are all that the codec gets; the payload's extension comes from them."""
    data = encode(smooth() // 64 * 64, kind)
    assert CODEC.inspect(data) == (48, 64)
    assert CODEC.extension(data) == FORMATS[kind]


ISO = b"\0\0\0\x20ftyp%b\0\0\0\0%b"
OTHERS = {
    b"": "is empty",
    b"\n<!DOCTYPE html><html>404": "is HTML, not an image",
    b'<?xml version="1.0"?>\n<!DOCTYPE html PUBLIC><html>': "is HTML, not an image",
    b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>': "is XML, not an image",
    b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg">': "is SVG, an image format",
    b"<svg width='3'>": "is SVG, an image format that is not read; convert it",
    b'{"error": "not found"}': "is JSON, not an image",
    b"Rate limit exceeded": "is text, not an image",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0": "is a Git LFS pointer",
    b"%PDF-1.7": "is PDF, not an image",
    b"PK\x03\x04\x14": "is a zip, not an image",
    b"\x1f\x8b\x08\x00": "is gzip, not an image",
    ISO % (b"heic", b"mif1heic"): "is HEIC, an image format that is not read",
    ISO % (b"mif1", b"mif1heic"): "is HEIC",
    ISO % (b"isom", b"mp41mp42"): "is a video, not an image",
    b"\0\0\0\x0cJXL \r\n\x87\n": "is JPEG XL",
    b"\xff\x0a\x7f": "is JPEG XL",
    b"\0\0\0\x0cjP  \r\n\x87\n": "is JPEG 2000",
    b"8BPS\0\1": "is PSD",
    bytes(4096): "is zeros only",
    bytes(100) + b"\1": "is no readable JPEG, PNG",
    b"\x80\x81\x82\x83": "is no readable JPEG, PNG",
    b"\x89PNG\r\n\x1a\n": "is a cut or damaged PNG",
    ISO % (b"mif1", b"avifmiaf"): "is a cut or damaged AVIF",
}


@pytest.mark.parametrize("data", OTHERS, ids=lambda data: repr(data[:24]))
def test_what_is_no_image_is_called_by_its_name(data):
    assert refused(data).startswith(OTHERS[data])
    if sniff(data) is None:
        with pytest.raises(SampleError) as caught:
            CODEC.extension(data)
        assert str(caught.value) == explain(data) == refused(data)


def huge(kind, side):
    """A small file whose header claims `side` x `side` pixels."""
    data = bytearray(encode(smooth(), kind))
    if kind == "JPEG":
        at = data.find(b"\xff\xc0")
        data[at + 5 : at + 9] = struct.pack(">HH", side, side)
    elif kind == "PNG":
        return png(side, side, 8, 2, [])
    elif kind == "WEBP":
        data = bytearray(encode(smooth(), kind, lossless=True))
        data[21:25] = struct.pack("<I", (side - 1) | (side - 1) << 14)
    elif kind == "GIF":
        data[6:10] = struct.pack("<HH", side, side)
    elif kind == "TIFF":
        return tiff(side, side, (8, 8, 8), bytes(100), compression=8)
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", side, side)
    elif kind == "AVIF":
        at = data.find(b"ispe") + 8
        data[at : at + 8] = struct.pack(">II", side, side)
    return bytes(data)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [10_000, 16_000])
def test_bombs_are_refused_by_their_header(kind, side):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reason = refused(huge(kind, side))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert "pixels" in reason
    assert "limit" in reason
    assert grown < 100_000  # KiB; decoded, it would be 300 MB and more


def test_compressed_texts_do_not_inflate():
    bomb = b"comment\0\0" + zlib.compress(bytes(200_000_000), 9)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reason = refused(png(1, 1, 8, 2, [bytes(3)], (b"zTXt", bomb)))
    assert "too large" in reason
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_thousands_of_scans_are_refused():
    data = encode(smooth(), "JPEG", progressive=True)
    first = data.find(b"\xff\xda")
    second = data.find(b"\xff\xda", first + 2)
    scan = data[first:second] if b"\xff\xc4" not in data[first:second] else data[first : first + 40]
    bomb = data[:first] + scan * (MAX_SCANS + 1) + data[first:]
    assert "scans; the limit is 100" in refused(bomb)
    assert decode(data).shape == (48, 64, 3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", [1, 6])
def test_descriptions_say_what_decoding_shows(kind, orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    data = encode(smooth(), kind, **({} if kind in ("GIF", "BMP") else {"exif": tags.tobytes()}))
    facts = CODEC.describe(data)
    assert (facts.height, facts.width) == CODEC.inspect(data)
    assert facts.format == kind
    assert facts.colours == ("palette" if kind == "GIF" else "rgb")
    assert not facts.progressive


@pytest.mark.parametrize(
    ("mode", "kind", "colours"),
    [("L", "JPEG", "grey"), ("CMYK", "JPEG", "cmyk"), ("1", "PNG", "grey"), ("LA", "PNG", "grey"),
     ("I;16", "PNG", "grey"), ("P", "PNG", "palette"), ("RGBA", "WEBP", "rgb"),
     ("CMYK", "TIFF", "cmyk")],
)  # fmt: skip
def test_colours_in_descriptions(mode, kind, colours):
    assert CODEC.describe(encode(Image.new(mode, (9, 5)), kind)).colours == colours


def test_descriptions_need_the_header_only():
    data = encode(smooth(), "JPEG", progressive=True)
    assert CODEC.describe(data).progressive
    assert CODEC.describe(data[: len(data) // 2]).width == 64
    with pytest.raises(SampleError, match="is HTML"):
        CODEC.describe(b"<html>")
    with pytest.raises(SampleError, match="damaged JPEG"):
        CODEC.describe(b"\xff\xd8\xff")
