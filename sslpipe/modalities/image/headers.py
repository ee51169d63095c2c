"""What bytes are by their first ones: a format that is read, or something else. No decoding."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

FORMATS = {  # what is read -> the extension that tells the truth
    "JPEG": "jpg", "PNG": "png", "WEBP": "webp", "AVIF": "avif", "GIF": "gif", "TIFF": "tif",
    "BMP": "bmp",
}  # fmt: skip

SIGNATURES = (
    ("JPEG", re.compile(rb"\xff\xd8")),
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("WEBP", re.compile(rb"RIFF....WEBP", re.DOTALL)),
    ("AVIF", re.compile(rb"....ftyp(?:avif|avis|.{8,64}?avi[fs])", re.DOTALL)),
    ("GIF", re.compile(rb"GIF8[79]a")),
    ("TIFF", re.compile(rb"II[*+]\0|MM\0[*+]")),
    ("BMP", re.compile(rb"BM")),
)
IMAGES = "an image format that is not read; convert it to JPEG or PNG"
OTHERS = (  # what else is found under the names of images, the common ones first
    ("HTML, not an image", re.compile(rb"(?s)\s*<(?:!doctype html|html|head|body)", re.I)),
    ("HTML, not an image", re.compile(rb"(?s)\s*<[!?].{0,1000}<html", re.I)),
    (f"SVG, {IMAGES}", re.compile(rb"(?s)\s*<(?:svg|.{0,1000}<svg)", re.I)),
    ("XML, not an image", re.compile(rb"\s*<\?xml")),
    (f"HEIC, {IMAGES}", re.compile(rb"(?s)....ftyp(?:hei[cfmsx]|hev[cmsx]|mif1|msf1)")),
    (f"JPEG XL, {IMAGES}", re.compile(rb"\xff\x0a|\0\0\0\x0cJXL ")),
    (f"JPEG 2000, {IMAGES}", re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51")),
    (f"PSD, {IMAGES}", re.compile(rb"8BPS")),
    ("a video, not an image", re.compile(rb"(?s)....ftyp|\x1a\x45\xdf\xa3|RIFF....AVI ")),
    ("PDF, not an image", re.compile(rb"%PDF")),
    ("a zip, not an image", re.compile(rb"PK\x03\x04")),
    ("gzip, not an image", re.compile(rb"\x1f\x8b")),
    ("a Git LFS pointer, not an image; run git lfs pull", re.compile(rb"version https://git-lfs")),
    ("JSON, not an image", re.compile(rb'\s*[\[{]\s*[\[{"\]}]')),
    ("text, not an image", re.compile(rb"[\t\n\r\x20-\x7e]{1,64}")),
    ("zeros only", re.compile(rb"\0{64}")),
)
LOOK = 2048  # bytes that tell

BASELINE = 0xC0  # SOF0
SCAN = b"\xff\xda"  # a start of scan; entropy-coded bytes never look like it
STANDALONE = frozenset({0x01, *range(0xD0, 0xD8)})  # TEM, RSTn: markers without a length
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
    return next((name for name, mark in SIGNATURES if mark.match(data[:LOOK])), None)


def explain(data: bytes) -> str:
    """Why bytes that no decoder takes are no image of ours."""
    if not data:
        return "is empty"
    name = sniff(data)
    if name:
        return f"is a cut or damaged {name}"
    head = data[:LOOK]
    what = next((what for what, mark in OTHERS if mark.match(head)), None)
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
