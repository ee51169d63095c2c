"""Frames on demand are the frames of decoding everything; files that lie, lack or turn, by rule."""

import re

import av
import numpy as np
import pytest

from sslpipe.errors import SampleError
from sslpipe.modalities.video.codec import ALL_KEYS, NO_TIMES, TURNED, UNSTEADY, VideoCodec
from sslpipe.modalities.video.container import opened
from sslpipe.modalities.video.decode import ClipDecode
from sslpipe.stream.reader import Sample

from tests.modalities.video.films import everything, film, picture, read, tone

CODEC = VideoCodec()
KINDS = {
    "no B-frames": {},
    "B-frames": {"codec": "libx264", "b_frames": 3},
    "open groups": {"codec": "libx264", "b_frames": 3, "options": {"x264-params": "open-gop=1:log-level=none"}},
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


@pytest.mark.parametrize("numbers", [(0,), (39,), (3, 4, 5), (11, 12, 13, 23, 24, 38), (5, 30)])
def test_planned_frames_are_those_of_decoding_everything(kind, numbers):
    whole, raw = everything(kind), decoded(kind, numbers)
    assert read(whole) == list(range(40))  # what is compared with is right itself
    np.testing.assert_array_equal(raw.data, whole[list(numbers)])
    assert raw.extent[:3] == (40, 32, 64)


def test_without_numbers_all_frames_come(kind):
    np.testing.assert_array_equal(decoded(kind).data, everything(kind))


def test_only_the_groups_that_are_needed_are_decoded(monkeypatch):
    """Packets that the decoder gets: of the group alone, and no further than the frame."""
    fed = []
    with opened(film(48, gop=12)) as made:
        packets = len(made.packets)

    class Counted:
        def __init__(self, context):
            self.context = context

        def decode(self, packet):
            fed.append(packet)
            return self.context.decode(packet)

        def __getattr__(self, name):
            return getattr(self.context, name)

    from sslpipe.modalities.video import decode

    with opened(film(48, gop=12)) as made:
        class Stream:
            codec_context = Counted(made.stream.codec_context)

        counted = decode.Film(made.container, Stream, made.packets, made.times_N, made.frames)
        found = [number for number, _ in decode.numbered(counted, [26, 27])]
    assert (packets, found) == (48, [26, 27])
    assert len(fed) <= 5  # 24 to 27, and one for the decoder's delay
