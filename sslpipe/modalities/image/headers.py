"""What bytes are by their first ones: a format that is read, how large, how turned. No decoding."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ...errors import SampleError

MAX_PIXELS = 89_478_485  # Pillow's own warning level: 256 MiB of RGB
MAX_SIDE = 65_535  # what JPEG and the shard index can say
MAX_SCANS = 100  # of a progressive JPEG; common ones have 10, each passes over all pixels

FORMATS = {  # what is read -> the extension that tells the truth
    "JPEG": "jpg", "PNG": "png", "WEBP": "webp", "AVIF": "avif", "GIF": "gif", "TIFF": "tif",
    "BMP": "bmp",
}  # fmt: skip

SIGNATURES = (  # compiled when they are first asked for, as workers hardly ever do
    ("JPEG", rb"\xff\xd8"),
    ("PNG", rb"\x89PNG\r\n\x1a\n"),
    ("WEBP", rb"(?s)RIFF....WEBP"),
    ("AVIF", rb"(?s)....ftyp(?:avif|avis|.{8,64}?avi[fs])"),
    ("GIF", rb"GIF8[79]a"),
    ("TIFF", rb"II[*+]\0|MM\0[*+]"),
    ("BMP", rb"BM"),
)
IMAGES = "an image format that is not read; convert it to JPEG or PNG"
OTHERS = (  # what else is found under the names of images, the common ones first
    ("HTML, not an image", rb"(?si)\s*<(?:!doctype html|html|head|body)"),
    ("HTML, not an image", rb"(?si)\s*<[!?].{0,1000}<html"),
    (f"SVG, {IMAGES}", rb"(?si)\s*<(?:svg|.{0,1000}<svg)"),
    ("XML, not an image", rb"\s*<\?xml"),
    (f"HEIC, {IMAGES}", rb"(?s)....ftyp(?:hei[cfmsx]|hev[cmsx]|mif1|msf1)"),
    (f"JPEG XL, {IMAGES}", rb"\xff\x0a|\0\0\0\x0cJXL "),
    (f"JPEG 2000, {IMAGES}", rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"),
    (f"PSD, {IMAGES}", rb"8BPS"),
    ("a video, not an image", rb"(?s)....ftyp|\x1a\x45\xdf\xa3|RIFF....AVI "),
    ("PDF, not an image", rb"%PDF"),
    ("a zip, not an image", rb"PK\x03\x04"),
    ("gzip, not an image", rb"\x1f\x8b"),
    ("a Git LFS pointer, not an image; run git lfs pull", rb"version https://git-lfs"),
    ("JSON, not an image", rb'\s*[\[{]\s*[\[{"\]}]'),
    ("text, not an image", rb"[\t\n\r\x20-\x7e]{1,64}"),
    ("zeros only", rb"\0{64}"),
)
LOOK = 2048  # bytes that tell

BASELINE = 0xC0  # SOF0
SCAN = b"\xff\xda"  # a start of scan; entropy-coded bytes never look like it
STANDALONE = frozenset({0x01, *range(0xD0, 0xD8)})  # TEM, RSTn: markers without a length
APP1, START_OF_SCAN = 0xE1, 0xDA
EXIF = b"Exif\0\0"
XMP = b"http://ns.adobe.com/xap/1.0/\0"
SMALL = 16_384  # bytes
PNG_TEXTS = frozenset({b"eXIf", b"iTXt", b"tEXt", b"zTXt"})


@dataclass(frozen=True, slots=True)
class Frame:
    """The frame header (SOFn) of a JPEG."""

    marker: int  # 0xC0 baseline, 0xC2 progressive
    width: int
    height: int
    components: int


def sniff(data: bytes) -> str | None:
    """The format in FORMATS that the first bytes announce; None if none."""
    return next((name for name, mark in SIGNATURES if re.match(mark, data[:LOOK])), None)


def explain(data: bytes) -> str:
    """Why bytes that no decoder takes are no image of ours."""
    if not data:
        return "is empty"
    name = sniff(data)
    if name:
        return f"is a cut or damaged {name}"
    head = data[:LOOK]
    what = next((what for what, mark in OTHERS if re.match(mark, head)), None)
    if what == "zeros only" and data.strip(b"\0"):
        what = None
    if what and what.startswith("text") and not is_text(head):
        what = None
    return f"is {what}" if what else f"is no readable {', '.join(FORMATS)}"


def is_text(head: bytes) -> bool:
    """Whether bytes may be text, in ASCII or UTF-8: no control codes but tabs and ends of lines."""
    return re.fullmatch(rb"[\t\n\r\x20-\x7e\x80-\xff]*", head) is not None


def jpeg_frame(data: bytes) -> Frame | None:
    """The first frame header of a JPEG; None if there is none."""
    at = 2
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # DHT, JPG, DAC
            height, width = (int.from_bytes(data[at + i : at + i + 2], "big") for i in (5, 7))
            return Frame(marker, width, height, data[at + 9])
        elif marker in STANDALONE:
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def turns_in_jpeg(data: bytes) -> dict[str, bytes]:
    """The EXIF and XMP before the first scan, where they may say how a JPEG is turned; else none.

    By the names under which Pillow has them.
    """
    if len(data) < SMALL and EXIF not in data and XMP not in data:
        return {}  # a look at all of it is quicker than ten segments
    at, exif, xmp = 2, b"", b""
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != START_OF_SCAN:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if data[at + 1] == APP1 and data.startswith(EXIF, at + 4):
            exif += data[at + 4 + len(EXIF) : end]  # a long one goes on in a second segment
        elif data[at + 1] == APP1 and data.startswith(XMP, at + 4):
            xmp = data[at + 4 + len(XMP) : end]
        at = end if data[at + 1] != 0xFF else at + 1  # a marker may stand after fill bytes
    return {"exif": exif, "xmp": xmp} if exif or b"Orientation" in xmp else {}


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, begin and end of every chunk of a PNG that is whole, up to the first that is not."""
    at = 8
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end <= len(data):
            yield data[at + 4 : at + 8], at, end
        at = end


def texts_first(data: bytes) -> bytes | None:
    """The header of a PNG with the texts that stand behind the pixels moved before them.

    EXIF may stand there, and only a reader that decodes would see it. None where nothing does.
    """
    pixels, late = 0, []
    for kind, at, end in png_chunks(data):
        if kind == b"IDAT":
            pixels = pixels or at
        elif pixels and kind in PNG_TEXTS:
            late.append(data[at:end])
    return data[:pixels] + b"".join(late) + data[pixels : pixels + 12] if late else None


def check_size(width: int, height: int) -> None:
    """Raise a SampleError for more pixels than are read, in all or on a side."""
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise SampleError(
            f"{width:,} x {height:,} pixels; the limits are {MAX_PIXELS:,} pixels in all "
            f"and {MAX_SIDE:,} a side"
        )


def check_scans(data: bytes) -> None:
    """Raise a SampleError for a small JPEG that takes minutes: thousands of scans of big ones."""
    frame = jpeg_frame(data) if data.startswith(b"\xff\xd8") else None
    if frame is None or frame.marker == BASELINE:  # most; counting takes 80 us of 94 kB
        return
    scans = data.count(SCAN)
    if scans > MAX_SCANS:
        raise SampleError(f"has {scans:,} scans; the limit is {MAX_SCANS}")
