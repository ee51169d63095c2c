"""A recording by its header, and exact ranges of it: libsndfile, by soundfile. No torch: workers.

What is refused, by rule: what libsndfile does not open, other containers than those below, a file
that ends before its container says, or a container that goes on behind its samples, no samples at
all, rates outside 1 to 768 kHz, samples that are no numbers, or eight times above full scale. What
is taken: any number of channels, one sample, values between 1 and 8, which are clipped. Damage
inside an MP3 that its decoder covers up is not noticed, but where there are fewer samples than the
header promises.
"""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...errors import ExtraError, SampleError

if TYPE_CHECKING:
    import soundfile

I16 = npt.NDArray[np.int16]
F32 = npt.NDArray[np.float32]
EXTENSIONS = {
    ("WAV", ""): "wav", ("WAVEX", ""): "wav", ("RF64", ""): "wav", ("FLAC", ""): "flac",
    ("OGG", "OPUS"): "opus", ("OGG", ""): "ogg", ("MP3", ""): "mp3",
}  # fmt: skip
LOSSY = frozenset({"ogg", "opus", "mp3"})
RATES = 1_000, 768_000
LOUDEST = 8.0  # what is above holds whole numbers, not shares of full scale
BLOCK = 2**20  # samples of all channels that are looked at together
REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
UNSAID = 0, 0xFFFFFFFF  # bytes of a WAV that was written to a pipe


class Header(NamedTuple):
    """What a recording says of itself; frames are samples of one channel."""

    frames: int
    rate: int
    channels: int


@contextmanager
def opened(data: bytes) -> Iterator[soundfile.SoundFile]:
    """A recording by its bytes, which is whole as far as its container can tell.

    Raises:
        SampleError: it is none, or breaks a rule of this module.
        ExtraError: soundfile is not installed.
    """
    library = soundfile_library()
    if not data:
        raise SampleError("is empty")
    try:
        sound = forward_file()(io.BytesIO(data))
    except library.LibsndfileError as error:
        raise SampleError(refusal(str(error.error_string).rstrip("."), data)) from error
    with sound:
        check_header(sound, data)
        try:
            yield sound
        except library.LibsndfileError as error:
            raise SampleError(f"does not decode: {str(error.error_string).rstrip('.')}") from error


@cache
def forward_file() -> type[soundfile.SoundFile]:
    """SoundFile without the seek that it does after each read, to where it is already.

    libsndfile decodes a block of FLAC for it anew: a tenth of the time of a crop of 2 s.
    """

    class ForwardFile(soundfile_library().SoundFile):  # type: ignore[misc]
        def seekable(self) -> bool:
            return False

    return ForwardFile


def refusal(reason: str, data: bytes) -> str:
    """Why libsndfile does not open a file, in words that suit bytes."""
    if reason == "Format not recognised":
        return (
            "is no recording that libsndfile reads: it begins with "
            f"{bytes(data[:12])!r}; convert it to WAV, FLAC, Ogg Vorbis, Opus or MP3"
        )
    if reason.startswith("File does not exist"):  # of an MP3 with a single frame
        reason = "cut or damaged"
    return f"is no recording that libsndfile reads: {reason or 'damaged'}"


def soundfile_library() -> Any:
    """The package soundfile.

    Raises:
        ExtraError: it is not installed.
    """
    try:
        import soundfile
    except (ImportError, OSError) as error:
        raise ExtraError(
            f"audio: soundfile cannot be imported ({error}); pip install 'sslpipe[audio]'"
        ) from error
    return soundfile


def check_header(sound: soundfile.SoundFile, data: bytes) -> None:
    """Raise a SampleError for what a header says that no recording of ours says."""
    ext = extension_of(sound)
    if ext == "wav":
        check_wav(data)
    elif ext in ("ogg", "opus"):
        check_ogg(data)
    if not 1 <= sound.frames < 2**32:
        raise SampleError(
            "has no samples, or does not say how many; leave it out or encode it anew"
        )
    if not RATES[0] <= sound.samplerate <= RATES[1]:
        raise SampleError(f"has {sound.samplerate:,} samples a second; 1,000 to 768,000 are read")


def extension_of(sound: soundfile.SoundFile) -> str:
    """The extension that the content deserves.

    Raises:
        SampleError: it is in another container.
    """
    name, kind = sound.format, sound.subtype
    ext = EXTENSIONS.get((name, kind), EXTENSIONS.get((name, "")))
    if ext is None:
        known = "WAV, FLAC, Ogg Vorbis, Opus and MP3"
        raise SampleError(f"is {name} ({kind}), not one of {known}; convert it")
    return ext


def header_of(data: bytes) -> Header:
    """What a recording says of itself.

    Raises:
        SampleError: as `opened`.
    """
    with opened(data) as sound:
        return Header(sound.frames, sound.samplerate, sound.channels)


def check_wav(data: bytes) -> None:
    """Raise a SampleError if the data chunk is cut, or ends before its samples do.

    libsndfile plays what the chunk says without a word. RF64 has its sizes elsewhere, and files
    that were written to a pipe say none.
    """
    at = 12
    while data[:4] == b"RIFF" and at + 8 <= len(data):
        name, (size,) = data[at : at + 4], struct.unpack_from("<I", data, at + 4)
        if name == b"data":
            there = len(data) - at - 8
            if size not in UNSAID and size > there:
                raise SampleError(f"is cut: {there:,} of {size:,} bytes of samples are there")
            if size not in UNSAID:
                check_behind(data, at + 8 + size)
            return
        at += 8 + size + size % 2


def check_behind(data: bytes, at: int) -> None:
    """Raise a SampleError if neither a chunk nor silence lies behind the samples of a WAV.

    at: where they end; some writers leave out the byte that pads an odd number of them. What lies
    behind the RIFF chunk is nobody's.
    """
    (size,) = struct.unpack_from("<I", data, 4)
    end = 8 + size if size not in UNSAID else at
    if any(data[at + 1 : end]) and not any(is_chunk(data, at + skip, end) for skip in (0, 1)):
        raise SampleError(
            f"is damaged: its samples end {end - at:,} bytes before its container does, and no "
            "other chunk follows; get it anew"
        )


def is_chunk(data: bytes, at: int, end: int) -> bool:
    """Whether a chunk of a WAV begins here, which has a name and finds room before `end`."""
    head = data[at : at + 8]
    told = len(head) == 8 and all(32 <= byte < 127 for byte in head[:4])
    return told and at + 8 + int.from_bytes(head[4:], "little") <= end


def check_ogg(data: bytes) -> None:
    """Raise a SampleError unless the last page ends the stream and is whole."""
    at = data.rfind(b"OggS")
    head = data[at : at + 27]
    sizes = data[at + 27 : at + 27 + head[26]] if len(head) == 27 else b""
    whole = len(head) == 27 and len(data) >= at + 27 + head[26] + sum(sizes)
    if not whole or not head[5] & 4:
        raise SampleError("is cut: its last page does not end the stream")


def check_pages(data: bytes) -> None:
    """Raise a SampleError if a page of an Ogg file differs from its checksum.

    libogg leaves such pages out without a word, and what is left counts as the whole recording.
    So does the first of several recordings that stand behind each other (RFC 3533: a chain).
    """
    at, begun = 0, False  # begun: whether the pages are over with which streams begin
    while at < len(data):
        head = data[at : at + 27]
        if len(head) < 27 or not head.startswith(b"OggS"):
            raise SampleError(f"is no Ogg page at byte {at:,}: it is damaged")
        first = bool(head[5] & 2)
        if begun and first:
            raise SampleError(
                f"is a chain of recordings, of which the first ends at byte {at:,}, and no other "
                "would be read; cut it there"
            )
        begun = not first
        end = at + 27 + head[26] + sum(data[at + 27 : at + 27 + head[26]])
        page = head[:22] + bytes(4) + data[at + 26 : end]
        if ogg_crc(page) != int.from_bytes(head[22:26], "little"):
            raise SampleError(f"its Ogg page at byte {at:,} is damaged")
        at = end


def ogg_crc(page: bytes) -> int:
    """The CRC-32 of Ogg: zlib's polynomial with all bits the other way round, from 0."""
    found = zlib.crc32(page.translate(REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{found:032b}"[::-1], 2)


def read_range(
    sound: soundfile.SoundFile, start: int, count: int, out: I16 | None = None
) -> I16 | F32:
    """`count` samples from `start` on, (count, channels): int16 as stored, or float32.

    out: (count, channels), where samples that are stored in 16 bits are wanted.

    Raises:
        SampleError: it has fewer than its header says, or they are no sound.
    """
    dtype = "int16" if sound.subtype == "PCM_16" else "float32"
    if start != sound.tell():
        sound.seek(start)
    samples: I16 | F32 = sound.read(count, dtype=dtype, always_2d=True, out=out)
    if len(samples) != count:
        raise SampleError(
            f"ends after {start + len(samples):,} samples, where its header promises "
            f"{sound.frames:,}"
        )
    if sound.subtype in ("FLOAT", "DOUBLE"):
        check_floats(samples, start)
    return samples


def check_floats(samples: npt.NDArray[Any], start: int) -> None:
    """Raise a SampleError for samples that are no numbers, or no shares of full scale."""
    bad = ~np.isfinite(samples).all(1)
    if bad.any():
        raise SampleError(f"sample {start + int(bad.argmax()):,} is not a finite number")
    loudest = float(np.abs(samples).max(initial=0.0))
    if loudest > LOUDEST:
        raise SampleError(
            f"has samples of {loudest:,.0f}; floating point samples lie in -1 to 1: scale them"
        )


def checked(data: bytes) -> Header:
    """Decode everything, block by block; the header, which it agrees with.

    16-bit FLAC has a hash of its samples, which tells what else nothing tells: that there are more.

    Raises:
        SampleError: as `opened` and `read_range`; a page of an Ogg file is damaged, or the samples
            of a FLAC file are not those that were encoded.
    """
    with opened(data) as sound:
        if extension_of(sound) in ("ogg", "opus"):
            check_pages(data)
        block, digest = max(1, BLOCK // sound.channels), hashlib.md5(usedforsecurity=False)
        for start in range(0, sound.frames, block):
            digest.update(read_range(sound, start, min(block, sound.frames - start)).data)
        promised = flac_hash(data) if sound.subtype == "PCM_16" else b""
        if promised and promised != digest.digest():
            raise SampleError(
                f"its {sound.frames:,} samples are not those that its header has a hash of; it is "
                "damaged, or there are more"
            )
        return Header(sound.frames, sound.samplerate, sound.channels)


def flac_hash(data: bytes) -> bytes:
    """The MD5 of the samples in the header of a FLAC file; empty if it has none."""
    found = data[26:42] if data.startswith(b"fLaC") else b""
    return found if any(found) else b""
