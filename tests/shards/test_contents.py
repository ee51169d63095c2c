"""What a set holds: pytest tests/shards/test_contents.py"""

import io
import tarfile
from dataclasses import replace

import pytest

from sslpipe.errors import ShardError
from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.shards import PackSettings, pack, read_manifest
from sslpipe.shards.contents import (
    extract_sample,
    find_key,
    find_row,
    list_keys,
    read_payload,
    spread_samples,
    survey,
)
from sslpipe.shards.make.adopt import adopt
from sslpipe.shards.scan import Rules


@pytest.fixture
def manifest(folder, tmp_path):
    """20 images in four formats, cats and dogs in turn, two in no class."""
    return pack(
        folder, tmp_path / "out", PackSettings(codec=ImageCodec(), shard_bytes=20_000)
    ).manifest


def test_totals_and_histograms(manifest, by_webdataset):
    found = survey(manifest, ImageCodec())
    samples = by_webdataset(manifest)
    payloads = [next(s[e] for e in ("jpg", "png", "webp", "bmp") if e in s) for s in samples]
    assert (found.samples, found.shards, found.excluded) == (20, len(manifest.shards), 0)
    assert found.payload_bytes == sum(map(len, payloads))
    assert found.tar_bytes == sum(manifest.tar(s).stat().st_size for s in manifest.shards)
    assert found.formats == {"jpg": 7, "png": 5, "webp": 4, "bmp": 4}
    assert found.flags == {"gpu_jpeg": 7}
    assert found.members == {"cls": 20}
    assert found.labels == {-1: 2, 0: 9, 1: 9}
    assert found.sizes == {"under 64": 20}
    assert found.classes == ("cat", "dog")
    assert found.fingerprint == manifest.fingerprint
    first = manifest.shards[0].file
    assert survey(replace(manifest, exclude={first: (0, 2)}), ImageCodec()).excluded == 2


def test_shorter_sides_fall_into_bins(tmp_path, picture):
    sizes = [(40, 63), (64, 300), (127, 200), (128, 128), (2100, 2048)]
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for number, size in enumerate(sizes):
            data = picture(number, size=size)
            info = tarfile.TarInfo(f"{number}.jpg")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    sized = adopt([str(tmp_path)], rules=Rules(ImageCodec())).manifest
    expected = {"under 64": 1, "64 to 127": 2, "128 to 255": 1, "2048 and more": 1}
    assert survey(sized, ImageCodec()).sizes == expected
    plain = adopt([str(tmp_path)], rules=Rules(ImageCodec(), look="none"), rebuild=True).manifest
    assert survey(plain, ImageCodec()).sizes == {"unknown": 5}


def test_keys_stand_in_the_order_of_the_tars(manifest, by_webdataset):
    assert list(list_keys(manifest)) == [s["__key__"] for s in by_webdataset(manifest)]


def test_a_sample_is_found_by_key_and_by_row(manifest, by_webdataset):
    for number, theirs in enumerate(by_webdataset(manifest)):
        place = find_row(manifest, number)
        assert find_key(manifest, theirs["__key__"]) == place
        sample = extract_sample(manifest, *place)
        assert sample.key == theirs["__key__"]
        members = {ext: data for ext, data in theirs.items() if not ext.startswith("__")}
        assert sample.members == members
        assert sample.label == int(theirs["cls"])
        assert sample.extent == {"height": 30, "width": 40}
        assert sample.flags == (("gpu_jpeg",) if sample.payload == "jpg" else ())
        key, label, data = read_payload(manifest, *place)
        assert (key, label, data) == (sample.key, sample.label, sample.members[sample.payload])
    shard, row = find_row(manifest, 3)
    hidden = replace(manifest, exclude={shard.file: (row,)})
    assert extract_sample(hidden, shard, row).excluded
    assert not sample.excluded


def test_what_is_not_there(manifest):
    with pytest.raises(ShardError, match=r"has no sample 'cat/x'; .*--keys"):
        find_key(manifest, "cat/x")
    for number in (-1, 20):
        with pytest.raises(ShardError, match=rf"row {number} does not exist; it has rows 0 to 19"):
            find_row(manifest, number)


def test_a_selection_is_spread_over_the_set(manifest):
    assert spread_samples(manifest, 100) == [find_row(manifest, number) for number in range(20)]
    assert spread_samples(manifest, 3) == [find_row(manifest, number) for number in (0, 10, 19)]


def test_it_works_for_tars_that_lie_elsewhere(manifest, tmp_path):
    url = str(manifest.root / "*.tar")
    away = adopt([url], out=tmp_path / "away", rules=Rules(ImageCodec())).manifest
    assert all(shard.url for shard in away.shards)
    assert list(list_keys(away)) == list(list_keys(manifest))
    here, there = (extract_sample(m, *find_row(m, 7)) for m in (manifest, away))
    assert here.members == there.members
    assert read_manifest(tmp_path / "away") == away


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda path, other: path.unlink(), "cannot be read (No such file or directory)"),
        (lambda path, other: path.write_bytes(b""), "is no shard index"),
        (lambda path, other: path.write_bytes(other), "is the index of another tar"),
        (lambda path, other: flip_last(path), "was changed (SHA-256 differs from the manifest)"),
    ],
)
def test_an_index_that_the_manifest_does_not_mean_is_refused_not_counted(manifest, damage, fault):
    first, second = manifest.shards[:2]
    damage(manifest.index(second), manifest.index(first).read_bytes())
    with pytest.raises(ShardError) as told:
        survey(manifest, ImageCodec())
    where = manifest.index(second)
    assert str(told.value) == f"{where}: {fault}; pack again or copy it again"


def flip_last(path):
    """Change the name of an extension, and nothing of what the index says of its tar."""
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
