"""The photos that come with the project: pytest tests/shards/test_sample.py"""

import csv
import gc
import hashlib
import io
import json
import re
import struct
import tarfile
import warnings
import zlib
from pathlib import Path

import pytest
from PIL import Image

from sslpipe.shards import PackSettings, open_manifest, pack, verify
from sslpipe.shards.read.store import open_store
from tests.reading import Reader

ROOT = Path(__file__).parents[2] / "shards"


@pytest.fixture(scope="module")
def manifest():
    return open_manifest(ROOT / "sample")


@pytest.fixture(scope="module")
def samples(manifest, by_webdataset):
    return by_webdataset(manifest)


def test_every_byte_is_right(manifest, codec):
    assert verify(manifest, codec=codec) == []
    assert (manifest.name, manifest.samples, len(manifest.classes)) == ("photos", 72, 12)


def test_packing_its_own_members_again_gives_the_same_files(manifest, samples, tmp_path, codec):
    for sample in samples:
        path = tmp_path / "photos" / f"{sample['__key__']}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sample["jpg"])
    pack(tmp_path / "photos", tmp_path / "out", PackSettings(codec=codec, shard_bytes=512 * 1024))
    again = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    assert again == {p.name: p.read_bytes() for p in manifest.root.iterdir() if p.suffix != ".csv"}


def test_every_photo_has_a_licence_that_allows_it(samples):
    with (ROOT / "sample" / "MANIFEST.csv").open(encoding="utf-8") as file:
        licences = {row["file"].removesuffix(".jpg"): row for row in csv.DictReader(file)}
    assert licences.keys() == {sample["__key__"] for sample in samples}
    free = r"public-domain|CC0-1\.0|CC-BY-\d\.0|no-known-restrictions"
    for row in licences.values():
        assert re.fullmatch(free, row["licence"])
        assert row["author"]


def test_the_code_in_the_specification_runs(monkeypatch):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    codes = re.findall(r"```python\n(.*?)```", text, re.S)
    monkeypatch.chdir(ROOT.parent)
    names = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves its files open
        exec(next(code for code in codes if "wds" in code), names)
        exec(next(code for code in codes if "read_sample" in code), names)
        gc.collect()
    assert names["jpeg"].startswith(b"\xff\xd8")
    assert 0 <= names["label"] < 12
    assert names["sample"].data.startswith(b"\xff\xd8")
    assert int(names["sample"].members["cls"]) == names["sample"].label


def read_by_the_specification(tar_path):
    """(key, uid, label, extent, flags, payload's extension, {ext: bytes}), by shards/README.md."""
    idx, tar = tar_path.with_name(tar_path.name + ".idx").read_bytes(), tar_path.read_bytes()
    magic, version, e, n, t, m, tar_bytes, digest = struct.unpack_from("<8sHHIIIQ32s", idx)
    assert (magic, version, tar_bytes) == (b"sslpidx\0", 2, len(tar))
    assert digest == hashlib.sha256(tar).digest()
    assert len(idx) == 64 + 40 * n + 20 * m + t
    extensions = idx[len(idx) - t :].decode().split("\n")
    assert len(extensions) == e
    for row in range(n):
        uid, *extent, label, flags, first, count, payload = struct.unpack_from(
            "<q4IiIIHH", idx, 64 + 40 * row
        )
        members, keys = {}, set()
        for number in range(first, first + count):
            offset, size, crc, ext, blocks = struct.unpack_from(
                "<QIIHH", idx, 64 + 40 * n + 20 * number
            )
            data = tar[offset : offset + size]
            assert zlib.crc32(data) == crc
            header = tarfile.TarInfo.frombuf(tar[offset - 512 : offset], "utf-8", "strict")
            assert (blocks, header.size) == (1, size)
            folder, _, name = header.name.rpartition("/")
            keys.add(f"{folder}/{name.split('.', 1)[0]}")
            assert name.split(".", 1)[1] == extensions[ext]
            members[extensions[ext]] = data
        (key,) = keys
        assert struct.pack("<q", uid) == hashlib.blake2b(key.encode(), digest_size=8).digest()
        yield key, uid, label, extent, flags, list(members)[payload], members


def test_a_reader_written_from_the_specification_alone_reads_it(manifest):
    names = json.loads((ROOT / "sample" / "manifest.json").read_text())
    assert (names["version"], names["modality"]) == (2, "image")
    assert (names["extent"], names["flags"]) == (["height", "width"], {"gpu_jpeg": 1})
    reader, count = Reader(open_store(manifest), ["cls"]), 0
    for number, shard in enumerate(names["shards"]):
        for row, read in enumerate(read_by_the_specification(ROOT / "sample" / shard["file"])):
            key, uid, label, extent, flags, payload, members = read
            ours = reader.read(number, row)
            assert (ours.key, ours.uid, ours.label, ours.flags) == (key, uid, label, flags)
            assert (list(ours.extent), dict(ours.members)) == (extent, members)
            assert ours.data == members[payload]
            assert key.startswith(names["classes"][int(members["cls"])])
            with Image.open(io.BytesIO(members[payload])) as photo:
                assert [*photo.size[::-1], 0, 0] == extent
            count += 1
    assert count == 72
