"""Checked bytes: keys of every kind, and damage that plain webdataset does not notice."""

import gc
import os
import shutil
import warnings

import numpy as np
import pytest
import webdataset

from sslpipe.errors import SampleError, ShardError
from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.shards import Manifest, PackSettings, open_manifest, pack, read_index, verify
from sslpipe.shards.read.store import open_store
from sslpipe.stream.worker import FEW_BYTES, HandedTar
from tests.conftest import write_images
from tests.reading import Reader


def reader_of(manifest: Manifest) -> Reader:
    return Reader(open_store(manifest))


def test_every_sample_is_what_webdataset_reads(packed):
    manifest = open_manifest(packed)
    reader = reader_of(manifest)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves its files open
        urls = [str(manifest.tar(shard)) for shard in manifest.shards]
        read = [list(webdataset.WebDataset(url, shardshuffle=False)) for url in urls]
        gc.collect()
    for number, (shard, theirs) in enumerate(zip(manifest.shards, read, strict=True)):
        assert len(theirs) == shard.samples
        for row, sample in enumerate(theirs):
            ours = reader.read(number, row)
            assert ours.key == sample["__key__"]
            assert ours.data == sample["jpg"]
            assert ours.label == int(sample["cls"])


def test_keys_of_any_script_and_length(tmp_path):
    write_images(tmp_path / "in", 3, classes=1)
    folder = tmp_path / "in" / "class0"
    (folder / "000.jpg").rename(folder / "été 日本.jpg")
    (folder / "001.jpg").rename(folder / ("long" * 50 + ".jpg"))
    manifest = pack(tmp_path / "in", tmp_path / "out", PackSettings(codec=ImageCodec())).manifest
    reader = reader_of(manifest)
    keys = {reader.read(0, row).key for row in range(3)}
    assert keys == {"class0/été 日本", "class0/" + "long" * 50, "class0/002"}


@pytest.fixture
def captioned(tmp_path):
    """Four images, three of them with a caption, two also with facts in JSON."""
    write_images(tmp_path / "in", 4, classes=1)
    for number in range(3):
        path = tmp_path / "in" / "class0" / f"{number:03d}.txt"
        path.write_text(f"caption {number}")
        if number:
            path.with_suffix(".json").write_text(f'{{"number": {number}}}')
    pack(tmp_path / "in", tmp_path / "out", PackSettings(codec=ImageCodec(), name="p"))
    return open_manifest(tmp_path / "out")


def samples_of(manifest, members):
    reader = Reader(open_store(manifest), members)
    return {sample.key: sample for sample in (reader.read(0, row) for row in range(4))}


def test_only_the_members_that_are_asked_for_are_read(captioned):
    plain = samples_of(captioned, ())
    assert all(sample.members == {"jpg": sample.data} for sample in plain.values())
    found = samples_of(captioned, ("txt", "json"))
    for key, sample in found.items():
        number = int(key[-1])
        assert sample.data == plain[key].data == sample.members["jpg"]
        assert sample.members.keys() == {
            "jpg",
            *["txt"] * (number < 3),
            *["json"] * (number in (1, 2)),
        }
        assert sample.members.get("txt", b"").decode() == (
            f"caption {number}" if number < 3 else ""
        )
        assert sample.sides == sample.extent[:2]
        assert min(sample.sides) > 0
        assert sample.flags == 1


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_a_damaged_caption_names_shard_key_and_member(captioned, damage):
    tar = captioned.tar(captioned.shards[0])
    index = read_index(tar)
    rows = [row for row in range(4) if "txt" in index.members_of(row)]
    row = max(rows, key=lambda row: index.members_of(row)["txt"].offset)
    place = index.members_of(row)["txt"]
    good = Reader(open_store(captioned), ["txt"])
    key = good.read(0, row).key
    with tar.open("r+b") as file:
        if damage == "cut":
            file.truncate(place.offset + 3)
        else:
            file.seek(place.offset)
            file.write(b"C")
    said = {
        "flip": "its .txt does not have the CRC32",
        "cut": "ends after 3 of 9 bytes of its .txt",
    }
    with pytest.raises(
        SampleError, match=rf"p-000000.tar sample {row} \({key}\): .*{said[damage]}"
    ):
        good.read(0, row)
    if damage == "flip":
        problems = verify(captioned, codec=ImageCodec())
        assert (problems[1].key, problems[1].row) == (key, row)
        assert "the bytes of its .txt were changed" in problems[1].what
        assert Reader(open_store(captioned)).read(0, row).key == key  # nobody asked for it


@pytest.mark.parametrize("size", [0, 3, FEW_BYTES, FEW_BYTES + 1, 40_000])
def test_what_a_worker_reads_is_what_stands_there_up_to_the_end(size, tmp_path):
    whole = np.random.default_rng(0).integers(0, 256, 100 + 512 + size, np.uint8).tobytes()
    path = tmp_path / "x.tar"
    for end in {len(whole), len(whole) - min(size, 2), 300}:
        path.write_bytes(whole[:end])
        tar = HandedTar(os.open(path, os.O_RDONLY))
        assert tar.read(100, 512, size) == (whole[100:end][:512], whole[612:end])


def test_a_shard_that_is_cut_while_the_run_goes_on(packed, tmp_path):
    folder = shutil.copytree(packed, tmp_path / "packed")
    manifest = open_manifest(folder)
    tar = manifest.tar(manifest.shards[0])
    last = len(read_index(tar)) - 1
    reader = reader_of(manifest)
    assert reader.read(0, 0).data
    with tar.open("r+b") as file:
        file.truncate(int(read_index(tar).payloads["offset"][last]) + 10)
    assert reader.read(0, 0).data
    with pytest.raises(SampleError, match=rf"sample {last}: the shard ends after 10 of .* cut"):
        reader.read(0, last)


def test_a_damaged_header_and_a_vanished_shard(packed, tmp_path):
    folder = shutil.copytree(packed, tmp_path / "packed")
    manifest = open_manifest(folder)
    tar = manifest.tar(manifest.shards[0])
    data = bytearray(tar.read_bytes())
    start = int(read_index(tar).payloads["offset"][0]) - 512
    data[start : start + 512] = bytes(512)
    tar.write_bytes(data)
    with pytest.raises(SampleError, match="damaged tar header"):
        reader_of(manifest).read(0, 0)
    manifest.tar(manifest.shards[1]).unlink()
    with pytest.raises(ShardError, match=r"000001.tar: is missing; pack again"):
        reader_of(manifest).read(1, 0)
