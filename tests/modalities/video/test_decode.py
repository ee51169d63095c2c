"""Frames on demand are the frames of decoding everything; files that lie, lack or turn, by rule."""

import io
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from sslpipe.errors import ExtraError, SampleError
from sslpipe.modalities.video import MODALITY
from sslpipe.modalities.video.codec import ALL_KEYS, NO_TIMES, TURNED, UNSTEADY, VideoCodec
from sslpipe.modalities.video.container import opened
from sslpipe.modalities.video.decode import ClipDecode, Converter, numbered
from sslpipe.recipe import parse_recipe
from sslpipe.stream.reader import Sample

from .films import covered, everything, film, picture, read, tone
from .test_pipeline import RECIPE

CODEC = VideoCodec()
OPEN = {"x264-params": "open-gop=1:log-level=none"}
KINDS = {
    "no B-frames": {},
    "B-frames": {"codec": "libx264", "b_frames": 3},
    "open groups": {"codec": "libx264", "b_frames": 3, "options": OPEN},
    "one key frame": {"codec": "libx264", "gop": 9999, "b_frames": 2},
    "key frames alone": {"gop": 1},
    "webm": {"container": "webm", "codec": "libvpx"},
    "vp9": {"container": "webm", "codec": "libvpx-vp9", "options": {"deadline": "realtime"}},
    "mkv": {"container": "matroska", "codec": "libx264", "b_frames": 2},
    "avi": {"container": "avi"},
    "avi with B-frames": {"container": "avi", "codec": "libx264", "b_frames": 2},
    "uneven": {"times": np.cumsum(np.where(np.arange(40) % 3, 40, 120))},
    "29.97": {"rate": 30},
    "fragments": {"codec": "libx264", "options": {}},
}  # fmt: skip


def sample(data, extent=(0, 0, 0, 0)):
    return Sample(uid=0, key="a", label=-1, data=data, extent=extent)


def decoded(data, numbers=(), size=None):
    return ClipDecode(size)(sample(data), [*numbers, -1, -1])


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return film(40, **KINDS[request.param])


NUMBERS = (
    (0,), (39,), (3, 4, 5), (11, 12, 13, 23, 24, 38), (5, 30), (8, 20, 32), (1, 10, 13, 21, 25),
    range(0, 40, 4),
)  # fmt: skip


@pytest.mark.parametrize("numbers", NUMBERS)
def test_planned_frames_are_those_of_decoding_everything(kind, numbers):
    whole, raw = everything(kind), decoded(kind, numbers)
    assert read(whole) == list(range(40))  # what is compared with is right itself
    np.testing.assert_array_equal(raw.data, whole[list(numbers)])
    assert raw.extent[:3] == (40, 32, 64)


def test_without_numbers_all_frames_come(kind):
    np.testing.assert_array_equal(decoded(kind).data, everything(kind))


class Counting:
    """A decoder that counts the packets it gets."""

    def __init__(self, context):
        self.context, self.fed = context, 0

    def decode(self, packet):
        self.fed += 1
        return self.context.decode(packet)

    def flush_buffers(self):
        self.context.flush_buffers()


def fed(data, numbers):
    """How many packets a decoder gets for these frames; the last of None counts as one."""
    with opened(data) as made:
        counting = Counting(made.stream.codec_context)
        stream = SimpleNamespace(codec_context=counting)
        found = [number for number, _ in numbered(replace(made, stream=stream), numbers)]
        places = {packet.pts: place for place, packet in enumerate(made.packets)}
        needed = [places[time] for time in made.times_N[numbers]]
    assert found == numbers
    return counting.fed, needed


def test_only_the_groups_that_are_needed_are_decoded():
    count, _ = fed(film(48, gop=12), [14, 26, 27])
    assert count == 3 + 4  # from 12 and from 24 on


def test_nothing_is_decoded_behind_the_last_frame_that_is_wanted_of_a_group():
    still = [picture(5)] * 48  # else x264 sees a cut in each frame, and makes key frames of them
    data = film(48, codec="libx264", gop=12, b_frames=3, pictures=still)
    numbers = [0, 8, 20]
    count, needed = fed(data, numbers)
    assert needed[1] < 11  # which it would be if frames were stored as they are shown
    assert count == (needed[1] + 1) + 1 + (needed[2] - 12 + 1) + 1


def test_frames_are_shrunk_as_images_are():
    pictures = [np.repeat(np.repeat(picture(n), 8, 0), 8, 1) for n in range(4)]
    data = film(4, pictures=pictures)  # 512 x 256
    raw = decoded(data, [1, 3], size=64)
    assert raw.data.shape == (2, 64, 128, 3)
    assert raw.extent[:3] == (4, 64, 128)
    means = raw.data.reshape(2, 2, 32, 4, 32, 3)[:, :, 8:24, :, 8:24].mean((2, 4, 5)) > 127
    assert (means.reshape(2, 8) << np.arange(8)).sum(1).tolist() == [1, 3]
    room = ClipDecode(64).room(
        extents=np.array([[4, 256, 512, 16000], [0, 0, 0, 0], [9, 32, 64, 0]]),
        sizes=np.array([1, 1, 1]),
        instructions=np.array([[1, 3, -1], [-1, -1, -1], [-1, -1, -1]]),
    )
    assert room.tolist() == [raw.data.nbytes, 0, 9 * 32 * 64 * 3]


@pytest.mark.parametrize("turn", [90, 180, -90])
def test_turned_videos_stand_upright(turn):
    """The display matrix turns what is stored to the left by `turn` degrees."""
    data = film(6, turn=turn)
    upright = np.rot90(everything(data), turn // 90, axes=(1, 2))
    np.testing.assert_array_equal(decoded(data, [0, 5]).data, upright[[0, 5]])
    assert CODEC.inspect(data) == CODEC.extent(data) == (6, *upright.shape[1:3], 16_000)
    assert CODEC.flags(data) & TURNED


def test_the_index_says_frames_sides_rate_and_what_is_odd():
    assert CODEC.extent(film(20, rate=Fraction(30_000, 1001))) == (20, 32, 64, 29_970)
    assert CODEC.flags(film(20)) == 0
    assert CODEC.flags(film(5, gop=1)) == ALL_KEYS
    assert CODEC.flags(film(20, container="avi", codec="libx264", b_frames=2)) == NO_TIMES
    uneven = film(9, times=[0, 40, 80, 200, 240, 280, 400, 440, 480])
    assert CODEC.flags(uneven) == UNSTEADY
    assert CODEC.extent(uneven) == (9, 32, 64, round(8 / 0.48 * 1000))
    for name, container in (("webm", "webm"), ("mkv", "matroska"), ("avi", "avi"), ("mp4", "mp4")):
        codec = "libvpx" if name == "webm" else "mpeg4"
        assert CODEC.extension(film(2, container=container, codec=codec)) == name


@pytest.mark.parametrize("count", [1, 8])
def test_short_videos_have_the_frames_that_they_have(count):
    data = film(count)
    assert CODEC.extent(data)[0] == count
    assert read(decoded(data).data) == list(range(count))


def test_sound_beside_pictures_is_left_out():
    assert read(decoded(film(5, audio=True)).data) == [0, 1, 2, 3, 4]


def moov_first(data):
    """The same mp4 as files for the web are written: what says where frames lie comes first."""
    with tempfile.TemporaryDirectory() as folder, av.open(io.BytesIO(data)) as source:
        path = Path(folder) / "a.mp4"  # FFmpeg opens it anew to move what lies behind
        with av.open(str(path), "w", options={"movflags": "faststart"}) as file:
            stream = file.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(source.streams.video[0]):
                if packet.size:
                    packet.stream = stream
                    file.mux(packet)
        return path.read_bytes()


def cut(data, share):
    return data[: int(share * len(data))]


BAD = {
    "two in a row": (2 * film(5), r"several files in a row, another begins at byte 9\d\d: cut it"),
    "a still picture": (
        b"\0\0\0\x20ftypavif" + bytes(200), r"is a picture \(avif\), no video; pack it as an image",
    ),
    "empty": (b"", "is empty"),
    "a page": (b"<html>404</html>", "is no mp4, webm, mkv or avi file: it begins with b'<html>404"),
    "cut mp4": (cut(film(20), 0.9), "is cut: its container says"),
    "half an mp4": (cut(film(20), 0.5), "is cut: its container says"),
    "an mp4 without its moov": (film(20)[: film(20).index(b"moov") - 4], "is a cut or damaged mp4"),
    "cut mp4 for the web": (cut(moov_first(film(20)), 0.9), "is cut: its container says"),
    "cut mkv": (cut(film(20, container="matroska"), 0.7), "is cut: its container says"),
    "cut webm": (cut(film(20, container="webm", codec="libvpx"), 0.7), "is cut: its container"),
    "cut avi": (cut(film(20, container="avi"), 0.9), "is cut: its container says"),
    "sound alone": (tone(), "has no video stream, only audio"),
    "a song": (covered(sound=True), "has no video stream, only audio, a cover"),
    "a codec of nobody": (
        film(5, container="avi").replace(b"FMP4", b"XYZW"), "is of a codec that FFmpeg does not",
    ),
    "a playlist": (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n", "is no mp4, webm, mkv or avi"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_by_all_who_read_them(name):
    data, words = BAD[name]
    for read_it in (CODEC.extent, CODEC.inspect, decoded):
        with pytest.raises(SampleError, match=words):
            read_it(data)
    assert CODEC.flags(data) == 0
    assert ClipDecode(None).extent(sample(data)) == (0, 0, 0, 0)


SMALL = [picture(number)[1:, 1:] for number in range(9)]
ODD = {  # files that are whole, though few look like them
    "10 bits": {"codec": "libx264", "pixels": "yuv420p10le"},
    "16 bits of grey": {"container": "matroska", "codec": "ffv1", "pixels": "gray16le"},
    "transparent": {"container": "mov", "codec": "png", "pixels": "rgba"},
    "odd sides": {"container": "matroska", "codec": "ffv1", "pictures": SMALL},
    "before zero": {"container": "matroska", "times": range(-300, 600, 100)},
    "long after zero": {"times": range(9_000, 18_000, 1000)},
    "Motion JPEG": {"container": "mov", "codec": "mjpeg", "pixels": "yuvj420p"},
}


@pytest.mark.parametrize("name", ODD)
def test_odd_files_have_all_their_frames(name):
    data = film(9, **ODD[name])
    assert CODEC.inspect(data)[0] == 9
    assert read(decoded(data).data) == list(range(9))
    assert read(decoded(data, (2, 7)).data) == [2, 7]


@pytest.mark.parametrize("kind", [{}, {"codec": "libx264", "b_frames": 2}])
def test_frames_that_an_edit_list_hides_are_not_counted(kind):
    data = film(9, times=range(-300, 600, 100), **kind)
    assert b"elst" in data
    assert CODEC.inspect(data)[0] == 6
    assert read(decoded(data).data) == read(everything(data)) == list(range(3, 9))
    assert read(decoded(data, (0, 4)).data) == [3, 7]


def test_a_cover_is_no_video():
    assert read(decoded(covered()).data) == [0, 1, 2, 3, 4]


def test_transparency_is_left_out():
    clear = np.zeros((32, 64, 4), np.uint8)
    clear[..., 0] = 255  # red that nobody sees
    out = io.BytesIO()
    with av.open(out, "w", format="mov") as file:
        stream = file.add_stream("png", rate=16)
        stream.height, stream.width, stream.pix_fmt = 32, 64, "rgba"
        file.mux(stream.encode(av.VideoFrame.from_ndarray(clear, format="rgba")))
        file.mux(stream.encode())
    assert (decoded(out.getvalue()).data == [255, 0, 0]).all()


@pytest.mark.parametrize(
    ("box", "offset", "value"),
    [(b"strh", 24, 0), (b"strh", 20, 0), (b"strf", 4, 0), (b"strf", 4, 100_000), (b"avih", 0, 0)],
    ids=["no rate", "no scale", "no width", "a huge width", "no microseconds"],
)
def test_an_avi_with_a_senseless_header_is_read_by_its_frames(box, offset, value):
    data = bytearray(film(9, container="avi"))
    at = data.index(box) + 8 + offset
    data[at : at + 4] = value.to_bytes(4, "little")
    assert CODEC.inspect(bytes(data))[:3] == (9, 32, 64)
    assert read(decoded(bytes(data), (1, 8)).data) == [1, 8]


def test_a_file_without_its_cut_end_is_whole():
    for container in ("mp4", "matroska", "avi"):
        assert CODEC.extent(film(20, container=container))[0] == 20
    assert CODEC.extent(moov_first(film(20)))[0] == 20


def test_numbers_in_headers_are_not_believed():
    """avih.dwTotalFrames and strh.dwLength of an AVI say 7; 20 frames are there."""
    data = bytearray(film(20, container="avi"))
    at = data.index(b"avih") + 8 + 16
    data[at : at + 4] = (7).to_bytes(4, "little")
    at = data.index(b"strh") + 8 + 32
    data[at : at + 4] = (7).to_bytes(4, "little")
    assert CODEC.inspect(bytes(data))[0] == 20
    assert read(decoded(bytes(data)).data) == list(range(20))


def test_another_number_of_frames_than_in_the_index_is_an_error():
    told = sample(film(20), extent=(30, 32, 64, 16_000))
    with pytest.raises(SampleError, match="has 20 frames, and 30 in its index"):
        ClipDecode(None)(told, [25])


def test_frames_that_do_not_decode_are_an_error_where_they_are_wanted():
    data = bytearray(film(40, codec="libx264"))
    with opened(bytes(data)) as made:
        bad = made.packets[24]  # a key frame
        start, size = bad.pos, bad.size
    half = slice(start + size // 2, start + size)
    data[half] = bytes(byte ^ 0xFF for byte in data[half])
    assert read(decoded(bytes(data), [0, 20]).data) == [0, 20]
    for read_it in (CODEC.inspect, lambda data: decoded(data, [0, 33])):
        with pytest.raises(
            SampleError, match=r"does not decode: frame \d+, or one|is a cut or dam"
        ):
            read_it(bytes(data))


def test_a_video_that_changes_its_size_is_an_error():
    with opened(film(4, pictures=[np.zeros((64, 64, 3), np.uint8)] * 4)) as made:
        frame = next(frame for _, frame in numbered(made, [0]))
        convert = Converter(None)
        convert(frame)
        with pytest.raises(SampleError, match="changes its size from 64 x 64 to 32 x 64"):
            convert(frame.reformat(width=32, height=64))


def test_files_without_times_are_decoded_from_the_beginning():
    """Raw packets in an AVI, and any file whose packets have lost their times."""
    data = film(30, codec="libx264", b_frames=2)
    whole = everything(data)
    with opened(data) as made:
        frames = dict(numbered(replace(made, times_N=None), [7, 22]))
        shown = {n: frame.to_ndarray(format="rgb24") for n, frame in frames.items()}
    assert list(shown) == [7, 22]
    np.testing.assert_array_equal(list(shown.values()), whole[[7, 22]])


def test_without_pyav_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    for use in (
        lambda: CODEC.extent(b"\0" * 100),
        lambda: CODEC.version,
        lambda: MODALITY.decoder(parse_recipe(RECIPE)),
    ):
        with pytest.raises(ExtraError, match=re.escape('pip install "sslpipe[video]"')):
            use()


def test_workers_need_no_torch():
    code = "import sys, sslpipe.modalities.video.decode; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
