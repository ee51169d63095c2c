"""Whether a video file is all there, by the sizes that its container says: nothing is decoded.

FFmpeg plays what it finds of a cut file and stops without a word, so the end is looked for here.
A stream that was written live says no size (Matroska allows it): then its elements must be looked
at one by one, which is done where all frames are decoded.
"""

from ...errors import SampleError

SEGMENT = 0x18538067  # id of the Matroska element that holds everything but the header
CLUSTER = 0x1F43B675  # of one that holds frames
# of all others in a segment: heads and tables; times and frames of a cluster; fillers, checksums
ELEMENTS = frozenset(
    {
        0x1A45DFA3, 0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1941A469, 0x1043A770,
        0x1254C367, 0xE7, 0xA3, 0xA0, 0xA7, 0xAB, 0xAF, 0x5854, 0xEC, 0xBF,
    }
)  # fmt: skip


def check_whole(data: bytes, kind: str) -> None:
    """Raise a SampleError if a file of this kind, an extension, ends before it says so."""
    ends = {"mp4": mp4_end, "mkv": matroska_end, "webm": matroska_end, "avi": avi_end}
    needed = ends[kind](data)
    if needed > len(data):
        raise SampleError(
            f"is cut: its container says {needed:,} bytes or more, there are {len(data):,}"
        )


def mp4_end(data: bytes) -> int:
    """Where the last box of an mp4 ends; one of size 0 goes on to the end of the file.

    Raises:
        SampleError: another file follows, of which FFmpeg shows nothing and says nothing.
    """
    at = 0
    while at + 8 <= len(data):
        if at and data[at + 4 : at + 8] == b"ftyp":
            raise SampleError(f"is several files in a row, another begins at byte {at:,}: cut it")
        size = int.from_bytes(data[at : at + 4])
        if size == 1:  # the size stands behind the name, in 8 bytes
            size = int.from_bytes(data[at + 8 : at + 16])
        if size < 8:
            return len(data)
        at += size
    return at


def avi_end(data: bytes) -> int:
    """Where the last RIFF chunk of an AVI ends: files above 1 GB have several."""
    at = 0
    while data[at : at + 4] == b"RIFF":
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if not size:  # of a file that was never closed
            return len(data)
        at += 8 + size + size % 2
    return at - 1 if at == len(data) + 1 else at  # the last chunk may lack its padding


def matroska_end(data: bytes) -> int:
    """Where the segment of a Matroska or WebM file ends; 0 where it says no size."""
    at = 0
    while at < len(data):
        name, at, _ = number(data, at, marked=True)
        size, at, unknown = number(data, at, marked=False)
        if name == SEGMENT:
            return 0 if unknown else at + size
        at += size
    return at


def check_elements(data: bytes) -> None:
    """Raise a SampleError unless the elements of a Matroska file lie behind each other (RFC 9559).

    FFmpeg leaves out what it does not understand, up to the next cluster, without a word.
    """
    at, end = 0, len(data)
    while at < end:
        begin = at
        name, at, _ = number(data, at, marked=True)
        size, at, unknown = number(data, at, marked=False)
        if name == SEGMENT:
            end = end if unknown else at + size
        elif name in ELEMENTS and not unknown:
            at += size
        elif name != CLUSTER:
            raise SampleError(f"is damaged: no element of Matroska begins at byte {begin:,}")
    if at > len(data):
        raise SampleError(
            f"is cut: the bytes of the last element end at byte {at:,}, there are {len(data):,}"
        )


def number(data: bytes, at: int, *, marked: bool) -> tuple[int, int, bool]:
    """A number of EBML (RFC 8794): it, where it ends, and whether it stands for `not known`.

    The zeros before the first one bit of it count its further bytes. marked: keep that bit, as ids
    have it.

    Raises:
        SampleError: no number begins there: the data is over, or its byte is zero.
    """
    if at >= len(data) or not data[at]:
        raise SampleError("is a cut or damaged Matroska file")
    length = 9 - data[at].bit_length()
    value = int.from_bytes(data[at : at + length])
    plain = value & ((1 << 7 * length) - 1)
    return value if marked else plain, at + length, plain == (1 << 7 * length) - 1
