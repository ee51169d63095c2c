"""Whether a recording is all there and alone, by what its container says: nothing is decoded.

libsndfile plays what it finds of a cut file, the first of several recordings that stand behind each
other, and as much of a WAV as its header says, all without a word.
"""

import struct
import zlib

from ...errors import SampleError

REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
UNSAID = 0, 0xFFFFFFFF  # bytes of a WAV that was written to a pipe
TAGS = b"Xing", b"Info"  # what the first frame of an MP3 begins its table of contents with
LEAD = 64  # bytes of the frame in which it stands
COUNTED = 3  # flags of a table that says how many frames and bytes there are


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


def flac_hash(data: bytes) -> bytes:
    """The MD5 of the samples in the header of a FLAC file; empty if it has none."""
    found = data[26:42] if data.startswith(b"fLaC") else b""
    return found if any(found) else b""


def check_mp3(data: bytes) -> None:
    """Raise a SampleError if another MP3 begins where the frames that the first one counts end.

    Files that were joined are so, and the decoder stops where the first of them ends.
    """
    start = first_frame(data, 0)
    if start is None:
        return
    at = min(place for tag in TAGS if (place := data.find(tag, start, start + LEAD)) >= 0)
    if len(data) < at + 16:
        return
    flags, frames, size = struct.unpack_from(">III", data, at + 4)
    end = start + size
    if flags & COUNTED == COUNTED and first_frame(data, end) is not None:
        raise SampleError(
            f"is several recordings in a row: the first has {frames:,} frames, down to byte "
            f"{end:,}, and no other would be read; cut it there"
        )


def first_frame(data: bytes, at: int) -> int | None:
    """Where the frame of MP3 begins that has a table of contents, here or behind an ID3 tag."""
    head = data[at : at + 10]
    if head.startswith(b"ID3") and len(head) == 10:
        at += 10 + sum(byte << 7 * place for place, byte in enumerate(reversed(head[6:])))
    frame = data[at : at + LEAD]
    synced = len(frame) == LEAD and frame[0] == 0xFF and frame[1] & 0xE0 == 0xE0
    return at if synced and any(tag in frame for tag in TAGS) else None
