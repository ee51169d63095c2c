"""Matroska and WebM by their elements: what FFmpeg leaves out without a word is noticed."""

import pytest

from sslpipe.errors import SampleError
from sslpipe.modalities.video.codec import VideoCodec

from .films import film

CODEC = VideoCodec()
CLUSTER, SEGMENT, BLOCK = b"\x1f\x43\xb6\x75", b"\x18\x53\x80\x67", b"\xa3"


@pytest.mark.parametrize("live", [False, True])
def test_a_webm_whose_elements_are_damaged_is_refused(live):
    """FFmpeg leaves the frames of such places out, up to the next cluster, without a word."""
    data = film(40, container="webm", codec="libvpx", gop=8)
    if live:  # the size of its first cluster is not told: all bits are ones
        at = data.index(CLUSTER) + 4
        length = 9 - data[at].bit_length()
        data = (
            data[:at] + bytes([0xFF >> length - 1]) + b"\xff" * (length - 1) + data[at + length :]
        )
    assert CODEC.inspect(data + b"nobody's")[0] == 40
    block = data.index(BLOCK, data.index(BLOCK, data.index(CLUSTER)) + 60)
    for at, value in ((block, 0x13), (block + 1, data[block + 1] ^ 7)):
        bad = data[:at] + bytes([value]) + data[at + 1 :]
        with pytest.raises(SampleError, match="damaged"):
            CODEC.inspect(bad)


def test_a_webm_that_was_written_live_and_cut_is_refused():
    data = bytearray(film(40, container="webm", codec="libvpx"))
    at = data.index(SEGMENT) + 4  # the size of the segment, in 8 bytes
    assert data[at] == 1
    data[at + 1 : at + 8] = b"\xff" * 7
    assert CODEC.inspect(bytes(data))[0] == 40
    with pytest.raises(SampleError, match=r"is cut: .* of the last element end at byte"):
        CODEC.inspect(bytes(data[: len(data) // 2]))
