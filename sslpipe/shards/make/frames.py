"""Folders of numbered pictures, as data sets of frames come: each folder becomes one video.

The pictures stay as they are, byte by byte: they lie one behind the other in an AVI, as Motion JPEG
or PNG, which every player, PyAV and webdataset take for what it is. Every frame of it is a key
frame, so a clip decodes its own frames alone.

The rules: JPEGs or PNGs of one name and one numbering, `img_00001.jpg`, in steps of any one size;
a number that is missing, a picture that is cut, or of another size or kind than the first, makes
the whole sample a bad one. Their rate is not told by them: `--fps` does.
"""

import io
import math
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from PIL import Image

from ...errors import SampleError, ShardError
from .source import FrameRun, Origin, read

FOURCC = {"JPEG": b"MJPG", "PNG": b"MPNG"}
NUMBERED = re.compile(r"(.*?)(\d+)\.(jpe?g|png)", re.IGNORECASE | re.DOTALL)
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # what FFmpeg has the same colours for
HEADER = 224  # bytes before the first frame
EACH = 24  # bytes of a frame beside its picture: its chunk, and its place in the index
KEY_FRAME = 16  # AVIIF_KEYFRAME
FPS = 25.0  # where nobody says it
MILLI = 1000  # rates stand in thousandths


def run_of(names: Iterable[str], folder: str, fps: float) -> FrameRun | None:
    """The numbered pictures among some names; None: there are not two.

    Raises:
        ShardError: they have several names or numberings.
    """
    found = [match for match in map(NUMBERED.fullmatch, names) if match]
    if len(found) < 2:
        return None
    kinds = sorted({f"{match[1]}*.{match[3]}" for match in found})
    if len(kinds) > 1:
        raise ShardError(
            f"{folder}: holds frames of {len(kinds)} names, {', '.join(kinds)}; keep one in a "
            "folder, and the others elsewhere"
        )
    numbers = sorted(int(match[2]) for match in found)
    step = math.gcd(*(number - numbers[0] for number in numbers)) or 1
    first, digits = found[0], min(len(match[2]) for match in found)
    count = (numbers[-1] - numbers[0]) // step + 1
    run = FrameRun(first[1], digits, f".{first[3]}", numbers[0], step, count, fps)
    known = {run.name(number) for number in numbers}
    if odd := sorted(match[0] for match in found if match[0] not in known):
        raise ShardError(
            f"{folder}: {odd[0]} is numbered otherwise than {run.name(numbers[0])}; rename it"
        )
    return run


def origin_of(run: FrameRun, place: Callable[[str], Origin]) -> Origin:
    """Where the pictures of a run lie; `place`: of one of them, by its name."""
    name = run.name(run.first)
    first = place(name)
    if first.member is not None:
        return replace(first, member=first.member.removesuffix(name), frames=run)
    return replace(first, url=first.url.removesuffix(name), frames=run)


def film_bytes(run: FrameRun, sizes: Mapping[str, int]) -> int:
    """How many bytes the video of a run has."""
    known = [sizes.get(name, 0) for name in run.names]
    return HEADER + 8 + sum(EACH + size + size % 2 for size in known)


def film_at(place: Origin) -> bytes:
    """The video of the pictures at a place.

    Raises:
        OSError: one cannot be read.
        SampleError: they do not make one.
    """
    assert place.frames is not None
    pictures, kinds = [], set()
    for name in place.frames.names:
        pictures.append(read(picture_at(place, name)))
        kinds.add(looked_at(pictures[-1], name))
        if len(kinds) > 1:
            (_, *one), (_, *other) = kinds
            what = "size or kind" if one == other else "size"
            raise SampleError(f"{name} has another {what} than those before; pack them apart")
    ((form, width, height),) = kinds
    return avi(pictures, FOURCC[form], (width, height), round(MILLI * place.frames.fps))


def picture_at(place: Origin, name: str) -> Origin:
    """Say where one picture of a folder of frames lies, by its name."""
    if place.member is not None:
        return replace(place, member=place.member + name, frames=None)
    return replace(place, url=place.url + name, frames=None)


def looked_at(data: bytes, name: str) -> tuple[str, int, int]:
    """Format, width and height of a picture, by its header.

    Raises:
        SampleError: it is cut or damaged, or none that can be a frame.
    """
    try:
        with Image.open(io.BytesIO(data), formats=tuple(FOURCC)) as image:
            form, mode, size = str(image.format), image.mode, image.size
            image.verify()  # of a PNG the checksums
    except Exception as error:  # Pillow raises a dozen kinds on damaged bytes
        raise SampleError(f"{name} is no JPEG or PNG, or a damaged one") from error
    if form == "JPEG" and not data.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise SampleError(f"{name} is cut: it does not end as a JPEG does")
    if mode not in MODES:
        raise SampleError(f"{name} has the colours {mode}; convert it to RGB")
    return form, *size


def avi(pictures: list[bytes], fourcc: bytes, sides: tuple[int, int], rate: int) -> bytes:
    """An AVI of one stream whose chunks are whole pictures; rate: of 1,000 seconds."""
    count, most = len(pictures), max(map(len, pictures))
    # microseconds a frame; it has an index; then counts, and sizes of buffer and picture
    main = struct.pack("<14I", round(1e9 / rate), 0, 0, 0x10, count, 0, 1, most, *sides, 0, 0, 0, 0)
    stream = b"vids" + fourcc + struct.pack(
        "<10I4H", 0, 0, 0, MILLI, rate, 0, count, most, 2**32 - 1, 0, 0, 0, *sides
    )  # fmt: skip
    picture = struct.pack("<3I2H", 40, *sides, 1, 24) + fourcc + struct.pack("<5I", *(0,) * 5)
    streams = listed(b"strl", chunk(b"strh", stream) + chunk(b"strf", picture))
    frames = [chunk(b"00dc", data) for data in pictures]
    at, index = 4, []
    for data, frame in zip(pictures, frames, strict=True):
        index.append(b"00dc" + struct.pack("<3I", KEY_FRAME, at, len(data)))
        at += len(frame)
    parts = (
        listed(b"hdrl", chunk(b"avih", main) + streams),
        listed(b"movi", b"".join(frames)),
        chunk(b"idx1", b"".join(index)),
    )
    return chunk(b"RIFF", b"AVI " + b"".join(parts))


def chunk(name: bytes, data: bytes) -> bytes:
    """A RIFF chunk, padded to an even size."""
    return name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)


def listed(name: bytes, data: bytes) -> bytes:
    """A RIFF list: a chunk whose data begin with the list's own name."""
    return chunk(b"LIST", name + data)
