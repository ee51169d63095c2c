"""The tables of an mp4: refused where they contradict each other, believed on order."""

import io

import av
import numpy as np
import pytest

from sslpipe.errors import SampleError
from sslpipe.modalities.video.codec import VideoCodec
from sslpipe.modalities.video.container import UNPROBED, film_of, knows_order, opened
from sslpipe.modalities.video.decode import numbered
from sslpipe.shards import PackSettings, pack
from sslpipe.shards.manifest import read_manifest

from .films import everything, film
from .test_decode import decoded, moov_first

CODEC = VideoCodec()


def patched(data, box, offset, value):
    """The same file with another u32 at `offset` behind the name of a box."""
    at = data.index(box) + 4 + offset
    return data[:at] + value.to_bytes(4, "big") + data[at + 4 :]


def twisted(box, offset, value, **settings):
    return patched(film(20, codec="libx264", b_frames=2, **settings), box, offset, value)


TWISTED = {  # mp4s whose tables contradict each other; FFmpeg shows some of their 20 frames
    "no time scale": (twisted(b"mdhd", 12, 0), "its time scale is 0"),
    "an endless time scale": (twisted(b"mdhd", 12, 2**32 - 1), "time scale is 4,294,967,295"),
    "ticks of seconds": (twisted(b"mdhd", 12, 1), "of 20 frames, and yet it lasts 1.25 s, one"),
    "an edit of 1 ms": (twisted(b"elst", 8, 1), "1 of 20 frames, and yet it lasts 1 ticks"),
    "no times": (twisted(b"stts", 8, 0), "tell 20 sizes of frames, 0 times, 20 places"),
    "all at once": (twisted(b"stts", 12, 0), "yet they last 0 ticks, the track"),
    "one size": (twisted(b"stsz", 8, 1), "tell 1 sizes of frames, 20 times, 20 places"),
    "one place": (twisted(b"stsc", 12, 1), "tell 20 sizes of frames, 20 times, 1 places"),
    "no offsets": (twisted(b"ctts", 4, 0), "20 places, 0 offsets"),
    "for the web": (
        patched(moov_first(film(20)), b"mdhd", 12, 0), "its time scale is 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TWISTED)
def test_tables_of_an_mp4_that_contradict_each_other_are_refused(name):
    """They read as fewer frames than there are, and nobody said so."""
    data, words = TWISTED[name]
    assert len(everything(data)) < 20 or name == "no times"
    for read_it in (CODEC.extent, CODEC.inspect, decoded):
        with pytest.raises(SampleError, match=words):
            read_it(data)


def test_a_set_with_a_file_whose_time_scale_is_gone_is_packed_without_it(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "good.mp4").write_bytes(film(20))
    (tmp_path / "in" / "bad.mp4").write_bytes(TWISTED["no time scale"][0])
    for check in ("header", "decode"):
        out = tmp_path / check
        pack(tmp_path / "in", out, PackSettings(codec=CODEC, check=check))
        assert read_manifest(out).samples == 1
        assert "its time scale is 0, so no frame has a time" in (out / "report.jsonl").read_text()


def fragments(data):
    """The same mp4 in fragments, as it is streamed: its tables are empty."""
    out = io.BytesIO()
    flags = {"movflags": "frag_keyframe+empty_moov"}
    with av.open(io.BytesIO(data)) as source, av.open(out, "w", "mp4", options=flags) as file:
        stream = file.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.size:
                packet.stream = stream
                file.mux(packet)
    return out.getvalue()


def test_whole_mp4s_of_many_kinds_have_tables_that_agree():
    """With sound, in fragments, for the web, trimmed by an edit list, with too long a table."""
    plain = film(20, codec="libx264", b_frames=2)
    tail = patched(film(20), b"elst", 8, 500)  # what a phone writes when somebody trims
    tail = patched(tail, b"tkhd", 20, 500)
    for data, frames in (
        (film(20, audio=True), 20), (fragments(plain), 20), (moov_first(plain), 20), (tail, 8),
        (film(1), 1), (patched(film(20), b"stts", 8, 21), 20), (patched(plain, b"mdhd", 16, 0), 20),
    ):  # fmt: skip
        assert CODEC.extent(data)[0] == frames


@pytest.mark.parametrize("b_frames", [0, 3])
def test_opened_with_or_without_decoding_it_has_the_same_frames(b_frames):
    """Fragments tell no delay of the decoder: with B-frames they are opened once more."""
    plain = film(40, codec="libx264", b_frames=b_frames)
    for data, told in ((plain, True), (moov_first(plain), True), (fragments(plain), not b_frames)):
        quick = film_of(data, UNPROBED)
        with quick.container:
            assert knows_order(quick) == told
        with film_of(data, {}).container as probed, opened(data) as made:
            assert made.stream.average_rate == probed.streams.video[0].average_rate
            found = [frame.to_ndarray(format="rgb24") for _, frame in numbered(made, range(40))]
        np.testing.assert_array_equal(found, everything(data))
