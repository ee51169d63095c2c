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
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...errors import ExtraError, SampleError
from .whole import check_mp3, check_ogg, check_pages, check_wav, flac_hash

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


def read_sound(
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
        SampleError: as `opened` and `read_sound`; a page of an Ogg file is damaged, or the samples
            of a FLAC file are not those that were encoded; or it is several recordings in a row.
    """
    with opened(data) as sound:
        ext = extension_of(sound)
        if ext in ("ogg", "opus"):
            check_pages(data)
        elif ext == "mp3":
            check_mp3(data)
        block, digest = max(1, BLOCK // sound.channels), hashlib.md5(usedforsecurity=False)
        for start in range(0, sound.frames, block):
            digest.update(read_sound(sound, start, min(block, sound.frames - start)).data)
        promised = flac_hash(data) if sound.subtype == "PCM_16" else b""
        if promised and promised != digest.digest():
            raise SampleError(
                f"its {sound.frames:,} samples are not those that its header has a hash of; it is "
                "damaged, or there are more"
            )
        return Header(sound.frames, sound.samplerate, sound.channels)
