"""A packed set of tiny videos of several lengths and containers."""

import pytest

from sslpipe.modalities.video.codec import VideoCodec
from sslpipe.shards.make.pack import PackSettings, pack

from .films import film

KINDS = (
    {},
    {"codec": "libx264", "b_frames": 2},
    {"container": "webm", "codec": "libvpx"},
    {"container": "avi", "codec": "libx264", "b_frames": 2},
    {"turn": 90},
)


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """24 videos of 5 to 97 frames in 2 classes, several shards."""
    folder = tmp_path_factory.mktemp("videos")
    out = tmp_path_factory.mktemp("shards") / "videos"
    for number in range(24):
        kind = KINDS[number % len(KINDS)]
        path = folder / f"class{number % 2}" / f"{number:02d}.{kind.get('container', 'mp4')}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(film(5 + 4 * number, **kind))
    pack(folder, out, PackSettings(codec=VideoCodec(), shard_bytes=12_000))
    return out
