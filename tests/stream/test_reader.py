"""Checked bytes: keys of every kind, and damage that plain webdataset does not notice."""

import gc
import shutil
import warnings

import pytest
import webdataset

from sslpipe.errors import SampleError, ShardError
from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.shards import Manifest, open_manifest, pack, read_index
from sslpipe.shards import index as shard_format
from sslpipe.shards.read.store import open_store
from sslpipe.stream.reader import Reader
from tests.conftest import write_images


def reader_of(manifest: Manifest) -> Reader:
    return Reader(open_store(manifest), shard_format)


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
    manifest = pack(tmp_path / "in", tmp_path / "out", codec=ImageCodec()).manifest
    reader = reader_of(manifest)
    keys = {reader.read(0, row).key for row in range(3)}
    assert keys == {"class0/été 日本", "class0/" + "long" * 50, "class0/002"}


def test_a_shard_that_is_cut_while_the_run_goes_on(packed, tmp_path):
    folder = shutil.copytree(packed, tmp_path / "packed")
    manifest = open_manifest(folder)
    tar = manifest.tar(manifest.shards[0])
    last = len(read_index(tar)) - 1
    reader = reader_of(manifest)
    assert reader.read(0, 0).data
    with tar.open("r+b") as file:
        file.truncate(int(read_index(tar).records["offset"][last]) + 10)
    assert reader.read(0, 0).data
    with pytest.raises(SampleError, match=rf"sample {last}: the shard ends after 10 of .* cut"):
        reader.read(0, last)


def test_a_damaged_header_and_a_vanished_shard(packed, tmp_path):
    folder = shutil.copytree(packed, tmp_path / "packed")
    manifest = open_manifest(folder)
    tar = manifest.tar(manifest.shards[0])
    data = bytearray(tar.read_bytes())
    start = int(read_index(tar).records["offset"][0]) - 512
    data[start : start + 512] = bytes(512)
    tar.write_bytes(data)
    with pytest.raises(SampleError, match="damaged tar header"):
        reader_of(manifest).read(0, 0)
    manifest.tar(manifest.shards[1]).unlink()
    with pytest.raises(ShardError, match=r"000001.tar: is missing; pack again"):
        reader_of(manifest).read(1, 0)
