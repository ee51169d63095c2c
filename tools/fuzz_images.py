"""Images for tools/fuzz.py: seeds of every format and colour space, and what must hold of each.

As a script it is the child in which decoders may crash: it answers each line `SEED NUMBER` with one
of JSON.
"""

import io
import itertools
import json
import os
import resource
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
from fuzz_mutations import Case, case_of
from PIL import Image

from sslpipe.errors import SampleError
from sslpipe.modalities.image.canvases import CanvasDecode
from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.modalities.image.decode import Pixels, decode
from sslpipe.modalities.image.headers import png_chunks
from sslpipe.stream.reader import Sample

CODEC = ImageCodec()
MEMORY = 2**30  # bytes that one image may take; the largest that is decoded has 256 MiB of RGB
HANG = 10  # seconds of a core
ADDRESSES = 24 * 2**30  # bytes of a child, so that none takes the machine with it
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
          (1, 0, 2, 1))  # fmt: skip
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a PNG's colour types
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}


def photo(mode: str = "RGB", sides: tuple[int, int] = (61, 43)) -> Image.Image:
    """A smooth picture in a mode of Pillow's."""
    small = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize(sides, Image.Resampling.BICUBIC)
    if mode in ("RGBA", "LA", "PA"):
        image.putalpha(Image.linear_gradient("L").resize(sides))
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return image.convert(mode)


def saved(mode: str, kind: str, **settings: Any) -> bytes:
    """A picture as a file in memory."""
    file = io.BytesIO()
    photo(mode).save(file, kind, **settings)
    return file.getvalue()


def turned(orientation: int = 6) -> Image.Exif:
    """EXIF with an orientation."""
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def jpegs() -> Iterator[tuple[str, bytes]]:
    for mode in ("RGB", "L", "CMYK", "YCbCr"):
        for name, settings in {
            "": {}, "progressive": {"progressive": True}, "restarts": {"restart_marker_blocks": 3},
            "turned": {"exif": turned()}, "xmp": {"xmp": XMP}, "low": {"quality": 5},
        }.items():  # fmt: skip
            yield f"JPEG {mode} {name}", saved(mode, "JPEG", **settings)
    for sampling in (0, 1, 2):
        yield f"JPEG 4:{sampling}", saved("RGB", "JPEG", subsampling=sampling, comment=b"c")
    for mode in ("L", "CMYK"):
        more = [photo(mode)]
        yield f"JPEG MPO {mode}", saved(mode, "MPO", save_all=True, append_images=more)


def png_rows(values_HWC: np.ndarray, depth: int) -> bytes:
    """Filter bytes and packed rows of one pass."""
    height = len(values_HWC)
    flat = values_HWC.reshape(height, -1)
    if depth == 16:
        rows = [(row.astype(np.uint16) * 257).astype(">u2").tobytes() for row in flat]
    elif depth == 8:
        rows = [row.tobytes() for row in flat]
    else:
        bits = (flat[..., None] >> np.arange(7, 7 - depth, -1)) & 1
        rows = [np.packbits(row).tobytes() for row in bits.reshape(height, -1).astype(np.uint8)]
    return b"".join(b"\0" + row for row in rows)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(colour: int, depth: int, *, interlaced: bool, keyed: bool) -> bytes:
    """A PNG by hand: Pillow writes neither 16-bit colour nor interlaced ones."""
    shown = np.asarray(photo("RGBA"))[..., : CHANNELS[colour]]
    height, width = shown.shape[:2]
    parts = PASSES if interlaced else ((0, 0, 1, 1),)
    body = b"".join(png_rows(shown[y::v, x::h], depth) for y, x, v, h in parts)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    chunks = [(b"IHDR", header)]
    if colour == 3:
        chunks.append((b"PLTE", bytes(range(256)) * 3 if depth == 8 else bytes(3 * 2**depth)))
    if keyed:
        key = {0: struct.pack(">H", 1), 2: struct.pack(">HHH", 1, 2, 3), 3: b"\0\x80"}
        chunks.append((b"tRNS", key[colour]))
    packed = zlib.compress(body)
    chunks += [(b"IDAT", packed[:200]), (b"IDAT", packed[200:]), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in chunks)


def pngs() -> Iterator[tuple[str, bytes]]:
    for colour, depths in DEPTHS.items():
        for depth, interlaced, keyed in itertools.product(depths, (False, True), (False, True)):
            if not keyed or colour in (0, 2, 3):
                name = f"PNG {colour} {depth} {'interlaced ' * interlaced}{'tRNS' * keyed}"
                yield name, png(colour, depth, interlaced=interlaced, keyed=keyed)
    for mode in ("RGB", "P", "LA"):
        yield f"PNG {mode} turned", saved(mode, "PNG", exif=turned(), dpi=(72, 72))
    whole = saved("RGB", "PNG", exif=turned())
    late = [whole[at:end] for kind, at, end in png_chunks(whole) if kind == b"eXIf"]
    moved = whole.replace(late[0], b"")
    yield "PNG late exif", moved[:-12] + late[0] + moved[-12:]
    yield "PNG animated", saved("RGB", "PNG", save_all=True, append_images=[photo("RGB")])


def tiffs() -> Iterator[tuple[str, bytes]]:
    plain = ("1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F")
    for mode in plain:
        yield f"TIFF {mode}", saved(mode, "TIFF")
    for pressed in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd", "lzma"):
        for mode in ("RGB", "L", "CMYK", *(["I;16"] if pressed != "jpeg" else [])):
            yield f"TIFF {mode} {pressed}", saved(mode, "TIFF", compression=pressed)
    for pressed in ("group3", "group4", "tiff_ccitt"):
        yield f"TIFF 1 {pressed}", saved("1", "TIFF", compression=pressed)
    yield "TIFF turned", saved("RGB", "TIFF", exif=turned())
    yield "TIFF big", saved("RGB", "TIFF", big_tiff=True)
    yield "TIFF pages", saved("L", "TIFF", save_all=True, append_images=[photo("RGB")])


def others() -> Iterator[tuple[str, bytes]]:
    for mode in ("RGB", "RGBA"):
        for name, settings in {"": {}, "lossless": {"lossless": True}, "turned": {"exif": turned()},
                               "animated": {"save_all": True, "append_images": [photo(mode)]}
                               }.items():  # fmt: skip
            yield f"WEBP {mode} {name}", saved(mode, "WEBP", **settings)
    for mode in ("RGB", "RGBA", "L"):
        yield f"AVIF {mode}", saved(mode, "AVIF", speed=10)
    yield "AVIF turned", saved("RGB", "AVIF", speed=10, exif=turned())
    yield "AVIF animated", saved("RGB", "AVIF", speed=10, save_all=True, append_images=[photo()])
    for mode in ("1", "L", "P", "RGB"):
        yield f"GIF {mode}", saved(mode, "GIF")
    yield "GIF clear", saved("P", "GIF", transparency=3)
    yield "GIF animated", saved("P", "GIF", save_all=True, append_images=[photo("L")])
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        yield f"BMP {mode}", saved(mode, "BMP")


@cache
def image_seeds() -> tuple[tuple[str, bytes], ...]:
    """Name and bytes of every whole image that cases begin with; the decoder takes most of them."""
    return (*jpegs(), *pngs(), *tiffs(), *others())


def with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks have the CRCs of what they hold; all else as it is."""
    if not data.startswith(b"\x89PNG"):
        return data
    found = bytearray(data)
    for _, at, end in png_chunks(data):
        found[end - 4 : end] = struct.pack(">I", zlib.crc32(data[at + 4 : end - 4]))
    return bytes(found)


def image_case(seed: int, number: int) -> Case:
    """Case `number` of a campaign: the same bytes for ever."""
    return case_of(image_seeds(), seed, number, mend=with_checksums)


def outcome(function: Callable[[], Any], what: str, found: list[str]) -> Any:
    """What a function gives; None: it refuses. Any other exception is a finding."""
    try:
        return function()
    except SampleError:
        return None
    except Exception as error:
        found.append(f"{what}: {type(error).__name__}: {error}")
        return None


def check_image(case: Case) -> list[str]:
    """Everything that is wrong with how an image is taken or refused."""
    found: list[str] = []
    data = case.data
    pixels: Pixels | None = outcome(lambda: decode(data), "decode", found)
    header = outcome(lambda: CODEC.extent(data), "header", found)
    outcome(lambda: CODEC.describe(data), "describe", found)
    flags = outcome(lambda: CODEC.flags(data), "flags", found)
    small = outcome(lambda: decode(data, size=16), "decode to 16 px", found)
    sample = Sample(0, "k", -1, data, flags or 0)
    for factor in (2, 8):
        raw = outcome(lambda f=factor: CanvasDecode(None)(sample, (f,)), f"at 1/{factor}", found)
        if (raw is None) != (pixels is None):
            found.append(f"taken at 1/{factor}: {raw is not None}, at 1/1: {pixels is not None}")
    indexed = sample._replace(extent=(*(header or (1, 1)), 0, 0))
    raw = outcome(lambda: CanvasDecode(None)(indexed, (1,)), "as indexed", found)
    if (raw is None) != (pixels is None) or (raw and not np.array_equal(raw.data, pixels)):
        found.append("as indexed it has other pixels")
    if (small is None) != (pixels is None):
        found.append(f"taken at 16 px: {small is not None}, whole: {pixels is not None}")
    if pixels is not None:
        found += check_taken(case, pixels, header)
    if header is not None:
        found += check_box(data, pixels, header)
    return found


def check_box(data: bytes, pixels: Pixels | None, sides: tuple[int, int]) -> list[str]:
    """What is wrong with an image of which only a box is wanted: its middle, or its last pixel."""
    found: list[str] = []
    height, width = sides
    for top, left in ((height // 3, width // 3), (height - 1, width - 1)):
        below, right = max(height - top, top + 1), max(width - left, left + 1)
        box = top << 16 | left, below << 16 | right
        part = outcome(lambda b=box: decode(data, guess=sides, box=b), "a box", found)
        if (part is None) != (pixels is None):
            found.append(f"box {box} taken: {part is not None}, whole: {pixels is not None}")
        elif part is not None and pixels is not None:
            inside = np.s_[top:below, left:right]
            if not np.array_equal(part[inside], pixels[inside]):
                found.append(f"box {box} has other pixels")
    return found


def check_taken(case: Case, pixels: Pixels, header: tuple[int, int] | None) -> Iterator[str]:
    """What is wrong with an image that was decoded."""
    if header != pixels.shape[:2]:
        yield f"decodes to {pixels.shape[:2]}, its header says {header}"
    if outcome(lambda: CODEC.extension(case.data), "extension", []) is None:
        yield "decodes, but has no extension"
    spoiled = case.kinds == ("cut",) or (case.kinds == ("flip",) and case.seed.startswith("PNG"))
    if spoiled and not same(pixels, case.whole):
        yield "was cut or changed against its checksum, and is taken with other pixels"


def same(pixels: Pixels, whole: bytes) -> bool:
    """Whether an image that was cut lost nothing that shows."""
    try:
        return np.array_equal(pixels, decode(whole))
    except SampleError:
        return True


def used() -> int:
    """The most bytes of memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def serve() -> None:
    """Answer cases until stdin ends; what libraries print goes to a file and becomes a finding."""
    answers = os.fdopen(os.dup(1), "w")
    with tempfile.TemporaryFile() as printed:
        for descriptor in (1, 2):
            os.dup2(printed.fileno(), descriptor)
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
        image_seeds()
        print("ready", file=answers, flush=True)
        for line in sys.stdin:
            before, start = used(), time.process_time()
            found = check_image(image_case(*map(int, line.split())))
            grown, seconds = used() - before, time.process_time() - start
            if seconds > HANG:
                found.append(f"took {seconds:.0f} s of a core")
            if grown > MEMORY:
                found.append(f"took {grown / 2**20:,.0f} MiB")
            sys.stderr.flush()
            if printed.tell():
                printed.seek(0)
                found.append(f"printed {printed.read(300)!r}")
                printed.seek(0)
                printed.truncate()
            print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    serve()
