"""Sizes from headers: pytest tests/modalities/image/test_header.py"""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

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


def exif(order, kind, orientation):
    """An EXIF block by hand, with the orientation as SHORT (3) or LONG (4)."""
    value = struct.pack(order + ("HH" if kind == 3 else "I"), *(orientation, 0)[: 5 - kind])
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HIH", 42, 8, 1)
    return b"Exif\0\0" + head + struct.pack(order + "HHI", 0x0112, kind, 1) + value + bytes(4)


def png_text(name, text):
    info = PngImagePlugin.PngInfo()
    info.add_itxt(name, text) if name.startswith("XML") else info.add_text(name, text, zip=True)
    return {"pnginfo": info}


def profile(data):
    return png_text("Raw profile type exif", f"\nexif\n{len(data):8d}\n{data.hex()}\n")


def behind_pixels(data):
    """A PNG whose texts stand between its pixels and its end."""
    at, chunks = 8, []
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        chunks.append(data[at:end])
        at = end
    late = [chunk for chunk in chunks if chunk[4:8] in (b"eXIf", b"iTXt", b"zTXt")]
    assert late
    return data[:8] + b"".join([c for c in chunks[:-1] if c not in late] + late + chunks[-1:])


def variants():
    """Every place where an orientation of 6 may stand: (name, format, settings, late)."""
    xmp = '<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    tags = Image.Exif()
    tags[700] = xmp.encode()
    for order in "<>":
        for kind in (3, 4):
            data = exif(order, kind, 6)
            for name in ("JPEG", "PNG", "WEBP", "AVIF", "TIFF"):
                yield f"{name} exif {order}{kind}", name, {"exif": data}, False
            yield f"PNG profile {order}{kind}", "PNG", profile(data), False
            yield f"PNG late profile {order}{kind}", "PNG", profile(data), True
            yield f"PNG late exif {order}{kind}", "PNG", {"exif": data}, True
    for name in ("JPEG", "WEBP", "AVIF"):
        yield f"{name} xmp", name, {"xmp": xmp.encode()}, False
    yield "TIFF xmp", "TIFF", {"tiffinfo": tags}, False
    for late in (False, True):
        yield f"PNG xmp {late}", "PNG", png_text("XML:com.adobe.xmp", xmp), late


MODES = {"JPEG": ["RGB", "L", "CMYK"], "TIFF": ["RGB", "L", "CMYK", "P"]}  # what formats can hold
CASES = [
    (f"{name} {mode}", kind, settings, late, mode)
    for name, kind, settings, late in variants()
    for mode in MODES.get(kind, ["RGB", "L", "P"])
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_header_and_decoder_turn_alike(case):
    name, kind, settings, late, mode = case
    image = Image.fromarray((np.arange(48 * 72 * 3).reshape(48, 72, 3) % 251).astype(np.uint8))
    file = io.BytesIO()
    image.convert(mode).save(file, kind, **settings)
    data = behind_pixels(file.getvalue()) if late else file.getvalue()
    pixels = decode(data)
    assert pixels.shape[:2] == read_size(data) == (72, 48), name
    with Image.open(io.BytesIO(data)) as opened:
        opened.load()
        upright = ImageOps.exif_transpose(opened).convert("RGB")
    np.testing.assert_array_equal(pixels, upright)


def test_damaged_texts_behind_the_pixels_turn_nothing_in_either():
    body = b"eXIf" + b"MM"
    chunk = struct.pack(">I", 2) + body + struct.pack(">I", zlib.crc32(body))
    data = encoded("PNG", 6)
    data = data[:-12] + chunk + data[-12:]
    assert decode(data).shape[:2] == read_size(data)


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
