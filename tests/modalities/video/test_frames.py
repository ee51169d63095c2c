"""Folders of numbered pictures as videos: frames, order, rate; what is wrong with one is told."""

import io
import shutil
import warnings
import zipfile

import numpy as np
import pytest
import webdataset
from PIL import Image
from typer.testing import CliRunner

from sslpipe.cli import app
from sslpipe.errors import ShardError
from sslpipe.modalities.audio.codec import AudioCodec
from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.modalities.text.codec import TextCodec
from sslpipe.modalities.video.codec import ALL_KEYS, VideoCodec
from sslpipe.modalities.video.decode import ClipDecode
from sslpipe.shards import open_manifest, read_index
from sslpipe.shards.make.listing import list_inputs
from sslpipe.shards.make.pack import PackSettings, estimate, pack
from sslpipe.stream.reader import Sample

from .films import picture, read

SETTINGS = {"codec": VideoCodec()}


def encoded(pixels, kind="JPEG"):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def clip(folder, numbers, *, name="img_{:05d}.jpg", kind="JPEG"):
    """A folder with a picture of each number."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (folder / name.format(number)).write_bytes(encoded(picture(number), kind))
    return folder


def packed(folder, out, **changes):
    return pack(folder, out, PackSettings(**SETTINGS, **changes))


def stored(out):
    """Key -> (extension, bytes), as webdataset reads them."""
    urls = sorted(map(str, out.glob("*.tar")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves its files open
        samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    found = {}
    for one in samples:
        ((ext, data),) = [(k, v) for k, v in one.items() if k in ("avi", "mp4")]
        found[one["__key__"]] = (ext, data)
    return found


def frames_of(data, numbers=()):
    sample = Sample(uid=0, key="a", label=-1, data=data, extent=(0, 0, 0, 0))
    return read(ClipDecode(None)(sample, [*numbers, -1]).data)


def test_a_folder_is_one_sample_of_its_pictures_in_the_order_of_their_numbers(tmp_path):
    files = clip(tmp_path / "in/left/clip_0001", range(1, 13), name="{}.jpg")  # 10 after 9
    clip(tmp_path / "in/right/clip_0001", range(0, 50, 5), name="f{:03d}.PNG", kind="PNG")
    (tmp_path / "in/left/clip_0001/Thumbs.db").write_bytes(b"x")
    report = packed(tmp_path / "in", tmp_path / "out", fps=12.5)
    found = stored(tmp_path / "out")
    assert {key: ext for key, (ext, _) in found.items()} == {
        "left/clip_0001": "avi", "right/clip_0001": "avi",
    }  # fmt: skip
    left, right = found["left/clip_0001"][1], found["right/clip_0001"][1]
    assert frames_of(left) == list(range(1, 13))
    assert frames_of(left, (2, 3, 9)) == [3, 4, 10]
    assert frames_of(right) == list(range(0, 50, 5))
    at = 0
    for number in range(1, 13):  # every byte of every picture is kept
        at = left.index((files / f"{number}.jpg").read_bytes(), at) + 1
    manifest = open_manifest(tmp_path / "out")
    assert manifest.classes == ("left", "right")
    index = read_index(tmp_path / "out" / manifest.shards[0].file)
    assert sorted(map(tuple, index.samples["extent"].tolist())) == [
        (10, 32, 64, 12_500), (12, 32, 64, 12_500),
    ]  # fmt: skip
    assert set(index.samples["flags"].tolist()) == {ALL_KEYS}
    assert report.summary["packed"]["frame rate"] == "12.5 per second, of 2 folders of frames"
    assert [note.file for note in report.skipped] == ["left/clip_0001/Thumbs.db"]


def test_the_rate_that_nobody_said_is_told(tmp_path):
    clip(tmp_path / "in/a", range(3))
    said = "25 per second, of 1 folders of frames"
    settings = PackSettings(**SETTINGS)
    guess = estimate(tmp_path / "in", tmp_path / "out", settings)
    assert guess.summary["would pack"]["frame rate"] == said
    assert packed(tmp_path / "in", tmp_path / "out").summary["packed"]["frame rate"] == said


def test_a_zip_gives_the_same_samples_and_sizes_are_known_before(tmp_path):
    for name in ("a", "b"):
        clip(tmp_path / "in/frames" / name, range(9))
    shutil.make_archive(str(tmp_path / "in"), "zip", tmp_path / "in", "frames")
    assert zipfile.is_zipfile(tmp_path / "in.zip")
    packed(tmp_path / "in/frames", tmp_path / "one")
    packed(tmp_path / "in.zip", tmp_path / "two")
    assert stored(tmp_path / "one") == stored(tmp_path / "two")
    size = len(stored(tmp_path / "one")["a"][1])
    exact = PackSettings(**SETTINGS, shard_bytes=10_240 * -(-(size + 2560) // 10_240))
    assert len(pack(tmp_path / "in/frames", tmp_path / "cut", exact).manifest.shards) == 2


def test_videos_and_frames_live_side_by_side(tmp_path):
    clip(tmp_path / "in/a", range(5))
    clip(tmp_path / "in/b", [7])  # one picture alone, such as a poster, is no video
    packed(tmp_path / "in", tmp_path / "out")
    clip(tmp_path / "in/videos", range(2), name="poster{}.jpg")
    shutil.copy(next((tmp_path / "out").glob("*.tar")), tmp_path / "x.tar")
    (tmp_path / "in/videos/v.avi").write_bytes(stored(tmp_path / "out")["a"][1])
    report = packed(tmp_path / "in", tmp_path / "both")
    assert set(stored(tmp_path / "both")) == {"a", "videos/v"}
    assert len(report.skipped) == 3


def cut(data):
    return data[:-20]


def damaged(data):
    middle = len(data) - 60
    return data[:middle] + bytes(40) + data[middle + 40 :]


FAULTS = {
    "a gap": (lambda one: one.unlink(), "cannot be read: No such file"),
    "cut": (lambda one: one.write_bytes(cut(one.read_bytes())), "img_00003.jpg is cut"),
    "empty": (lambda one: one.write_bytes(b""), "img_00003.jpg is no JPEG or PNG"),
    "another size": (
        lambda one: one.write_bytes(encoded(picture(3)[:16])), "img_00003.jpg has another size",
    ),
    "another kind": (
        lambda one: one.write_bytes(encoded(picture(3), "PNG")),
        "img_00003.jpg has another size or kind",
    ),
    "CMYK": (
        lambda one: Image.new("CMYK", (64, 32)).save(one, "JPEG"), "img_00003.jpg has the colours",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_picture_makes_its_sample_a_bad_one(tmp_path, fault):
    spoil, said = FAULTS[fault]
    clip(tmp_path / "in/good", range(6))
    spoil(clip(tmp_path / "in/bad", range(6)) / "img_00003.jpg")
    report = packed(tmp_path / "in", tmp_path / "out")
    assert set(stored(tmp_path / "out")) == {"good"}
    ((file, reason),) = [(note.file, note.reason) for note in report.failures]
    assert file == "bad"
    assert said in reason


def test_a_damaged_jpeg_does_not_become_grey_pixels(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    data = encoded(noise)
    middle = len(data) // 2
    folder = clip(tmp_path / "in/a", [])
    for number in range(4):
        one = data[:middle] + b"\xff\x00\xff\xd9" * 8 + data[middle:] if number == 2 else data
        (folder / f"{number}.jpg").write_bytes(one)
    clip(tmp_path / "in/b", range(4))
    assert len(packed(tmp_path / "in", tmp_path / "out").failures) == 1


def test_several_names_or_numberings_in_a_folder_are_refused_before_anything_is_read(tmp_path):
    clip(tmp_path / "in/a", range(4))
    clip(tmp_path / "in/a", range(4), name="flow_x_{:05d}.jpg")
    with pytest.raises(ShardError, match=r"^a: holds frames of 2 names, flow_x_\*\.jpg, img_\*"):
        packed(tmp_path / "in", tmp_path / "out")
    for path in (tmp_path / "in/a").glob("flow*"):
        path.unlink()
    clip(tmp_path / "in/a", [2], name="img_{:02d}.jpg")
    with pytest.raises(ShardError, match=r"^a: img_\d+.jpg is numbered otherwise than img_"):
        packed(tmp_path / "in", tmp_path / "out")


REFUSED = [
    (modality, option)
    for modality, codec in (
        ("video", VideoCodec()), ("audio", AudioCodec()), ("text", TextCodec()),
        ("image", ImageCodec()),
    )
    for option in codec.refused_options
]  # fmt: skip
TYPED = {"--resize": ["--resize", "64"], "--fps": ["--fps", "25"]}


@pytest.mark.parametrize(("modality", "option"), REFUSED)
def test_options_that_make_no_sense_are_refused_before_inputs_are_looked_at(
    tmp_path, modality, option
):
    words = ["pack", "nowhere", str(tmp_path / "out"), "--modality", modality]
    found = CliRunner().invoke(app, [*words, *TYPED.get(option, option.split())])
    assert isinstance(found.exception, ShardError), found.output
    assert str(found.exception).startswith(option)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), float("inf"), 1e9])
def test_a_rate_that_is_none_is_refused(fps):
    with pytest.raises(ShardError, match=r"^--fps "):
        PackSettings(**SETTINGS, fps=fps)


def test_another_rate_is_another_packing(tmp_path):
    clip(tmp_path / "in/a", range(3))
    one, other = (
        list_inputs([tmp_path / "in"], out=tmp_path / "out", extensions={"avi"}, fps=fps)
        for fps in (25, 12)
    )
    assert one.fingerprint != other.fingerprint
