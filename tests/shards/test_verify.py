"""Fault injection: pytest tests/shards/test_verify.py"""

import json
import shutil
import tarfile
from dataclasses import replace

import pytest

from sslpipe.errors import SampleError
from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.shards import PackSettings, open_manifest, pack, read_index, read_manifest, verify
from sslpipe.shards.index import file_sha256, write_index


@pytest.fixture
def manifest(folder, tmp_path, codec):
    return pack(folder, tmp_path / "out", PackSettings(codec=codec, shard_bytes=20_000)).manifest


@pytest.fixture
def victim(manifest):
    return manifest.shards[1]


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def faults(manifest, codec):
    return [(p.shard, p.key, p.what) for p in verify(manifest, codec=codec)]


def test_sound_shards_have_no_problems(manifest, codec):
    told = []
    assert verify(manifest, codec=codec, progress=told.append) == []
    assert told == [shard.samples for shard in manifest.shards]


def test_a_flipped_bit_in_a_payload_names_the_sample(manifest, victim, codec):
    record = read_index(manifest.tar(victim)).payloads[1]
    flip(manifest.tar(victim), int(record["offset"]) + int(record["size"]) // 2)
    open_manifest(manifest.root)  # sizes are right: only reading finds it
    whole, sample = faults(manifest, codec)
    assert whole[:2] == (victim.file, "")
    assert "SHA-256 differs from the manifest" in whole[2]
    assert sample[0] == victim.file
    assert "/" in sample[1] or sample[1].isdigit()
    assert "CRC-32 differs" in sample[2]


def test_a_flipped_bit_in_a_header_is_found(manifest, victim, codec):
    record = read_index(manifest.tar(victim)).payloads[1]
    flip(manifest.tar(victim), int(record["offset"]) - 512)
    _, (shard, key, what) = faults(manifest, codec)
    assert (shard, key) == (victim.file, "sample 1")
    assert "damaged tar header" in what


def test_a_sound_header_of_another_sample_is_found(manifest, victim, codec):
    tar = manifest.tar(victim)
    record = read_index(tar).payloads[1]
    at = int(record["offset"]) - 512
    data = bytearray(tar.read_bytes())
    header = tarfile.TarInfo("cat/other.jpg")
    header.size = int(record["size"])
    data[at : at + 512] = header.tobuf()
    tar.write_bytes(data)
    _, (_, key, what) = faults(manifest, codec)
    assert key == "sample 1"
    assert what.startswith(f"the tar header names 'cat/other.jpg' of {header.size:,} bytes")


def test_a_flipped_bit_in_padding_is_found(manifest, victim, codec):
    flip(manifest.tar(victim), -1)
    ((shard, key, what),) = faults(manifest, codec)
    assert (shard, key) == (victim.file, "")
    assert "content was changed" in what


def test_a_cut_names_the_lost_samples(manifest, victim, codec):
    tar = manifest.tar(victim)
    index = read_index(tar)
    last = index.payloads[-1]
    tar.write_bytes(tar.read_bytes()[: int(last["offset"]) + 10])
    whole, sample = faults(read_manifest(manifest.root), codec)
    assert "was cut or changed" in whole[2]
    assert f"was cut: 10 of {int(last['size']):,} bytes" in sample[2]


def test_a_vanished_shard(manifest, victim, codec):
    manifest.tar(victim).unlink()
    assert faults(read_manifest(manifest.root), codec) == [
        (victim.file, "", "is missing; pack again or copy it again")
    ]


def test_a_vanished_index(manifest, victim, codec):
    manifest.index(victim).unlink()
    ((shard, _, what),) = faults(manifest, codec)
    assert shard == victim.file
    assert what == f"{victim.file}.idx: is missing; pack again or copy it again"


def test_a_swapped_index(manifest, victim, codec):
    shutil.copy(manifest.index(manifest.shards[0]), manifest.index(victim))
    ((shard, _, what),) = faults(manifest, codec)
    assert shard == victim.file
    assert "is the index of another tar" in what


def test_a_changed_index(manifest, victim, codec):
    flip(manifest.index(victim), -1)
    ((shard, _, what),) = faults(manifest, codec)
    assert shard == victim.file
    assert "was changed (SHA-256 differs" in what


def test_a_cut_index(manifest, victim, codec):
    path = manifest.index(victim)
    path.write_bytes(path.read_bytes()[:-3])
    ((shard, _, what),) = faults(manifest, codec)
    assert shard == victim.file
    assert "was cut or changed" in what


def test_a_swapped_shard(manifest, victim, codec):
    shutil.copy(manifest.tar(manifest.shards[0]), manifest.tar(victim))
    found = faults(read_manifest(manifest.root), codec)
    assert {shard for shard, _, _ in found} == {victim.file}
    assert len(found) == 1 + victim.samples  # the file, and every sample of it


def test_samples_that_do_not_decode_are_named(manifest):
    class Failing(ImageCodec):
        def inspect(self, data):
            raise SampleError("does not decode: test")

    problems = verify(manifest, codec=Failing())
    assert len(problems) == manifest.samples
    assert {p.what for p in problems} == {"does not decode: test"}


def test_another_size_than_the_index_says(manifest):
    class Small(ImageCodec):
        def inspect(self, data):
            return 2, 1

    problems = verify(manifest, codec=Small())
    assert problems[0].what == "decodes to 2 x 1, the index says 30 x 40"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("extent", ["width", "height"], "names extents ['width', 'height'], not ['height', 'wi"),
        ("extent", ["height", "width", "depth"], "names extents ['height', 'width', 'depth']"),
        ("flags", {"gpu_jpeg": 2}, "names flags {'gpu_jpeg': 2}, not {'gpu_jpeg': 1}"),
        ("flags", {}, "names flags {}, not {'gpu_jpeg': 1}"),
        ("flags", {"gpu_jpeg": 1, "blurred": 2}, "names flags {'gpu_jpeg': 1, 'blurred': 2}, not"),
    ],
)
def test_names_of_numbers_and_bits_that_were_edited(manifest, codec, key, value, said):
    file = manifest.root / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    (found,) = faults(read_manifest(manifest.root), codec)
    assert found[:2] == ("manifest.json", "")
    assert found[2].startswith(said)


def test_bits_of_samples_that_were_edited(manifest, victim, codec):
    index = read_index(manifest.tar(victim))
    samples = index.samples.copy()
    before = int(samples["flags"][1])
    samples["flags"][1] ^= 1
    write_index(manifest.tar(victim), replace(index, samples=samples))
    digest = file_sha256(manifest.index(victim))
    shards = tuple(
        replace(s, index_sha256=digest) if s.file == victim.file else s for s in manifest.shards
    )
    (found,) = faults(replace(manifest, shards=shards), codec)
    assert found[0] == victim.file
    names = "none", "gpu_jpeg"
    assert found[2] == (
        f"has the flags {names[before]} ({before}), the index says {names[1 - before]} "
        f"({1 - before})"
    )


def test_a_label_that_the_manifest_has_no_class_for(manifest, codec):
    labels = {
        shard.file: read_index(manifest.tar(shard)).samples["label"] for shard in manifest.shards
    }
    beyond = [file for file, found in labels.items() if found.max() > 0]
    fewer = replace(manifest, classes=manifest.classes[:1])
    what = f"has label {1}, but the manifest names 1 classes; copy its manifest.json again"
    assert faults(fewer, codec) == [(file, "", what) for file in beyond]
    assert beyond
    assert faults(replace(manifest, classes=()), codec) == []  # tars of others: numbers alone
