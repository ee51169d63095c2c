"""Indexes of our tars and of anyone's: pytest tests/shards/test_index.py"""

import hashlib
import io
import struct
import tarfile
import zlib

import numpy as np
import pytest
from webdataset.tariterators import base_plus_ext

from sslpipe.errors import SampleError, ShardError
from sslpipe.rng import sample_id
from sslpipe.shards import Index, index_tar, read_index, write_index
from sslpipe.shards.index import (
    RECORD,
    header_range,
    index_path,
    parse_header,
    parse_index,
    split_name,
)
from sslpipe.shards.scan import Rules, index_stream, is_gpu_jpeg

IMAGES = {"jpg", "png"}


def make_tar(path, members, kind=tarfile.GNU_FORMAT):
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def keys_of(path, index):
    data = path.read_bytes()
    found = []
    for record in index.records:
        start, length = header_range(record)
        found.append(split_name(parse_header(data[start : start + length]).name)[0])
    return found


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_foreign_tars_are_indexed_as_webdataset_reads_them(tmp_path, kind, tars_by_webdataset):
    names = ["a/1", "b/" + "long" * 60, "dir.x/ü", "c"]
    members = []
    for number, key in enumerate(names):
        parts = [
            (f"{key}.JPG", b"pay%d" % number),
            (f"{key}.cls", b"%d\n" % number),
            (f"{key}.json", b"{}"),
        ]
        members += parts[::-1] if number % 2 else parts
    path = make_tar(tmp_path / "x.tar", [*members, ("__meta__/note.jpg", b"meta")], kind)
    index = index_tar(path, extensions=IMAGES)
    assert keys_of(path, index) == names
    theirs = tars_by_webdataset([path])
    assert [s["__key__"] for s in theirs] == names
    for number, (record, sample) in enumerate(zip(index.records, theirs, strict=True)):
        payload = path.read_bytes()[record["offset"] :][: record["size"]]
        assert payload == sample["jpg"] == b"pay%d" % number
        assert record["crc"] == zlib.crc32(payload)
        assert record["label"] == number
        assert record["uid"] == sample_id(names[number])
        assert (record["width"], record["height"]) == (0, 0)
    assert index.extensions == ("jpg",)
    assert index.tar_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


class Socket(io.BytesIO):
    """Gives fewer bytes than asked for, as sockets do."""

    def read(self, size=-1):
        return super().read(min(size, 100))


def test_short_reads_of_distant_files_are_completed(tmp_path):
    path = make_tar(tmp_path / "x.tar", [("a.jpg", b"A" * 700), ("b.cls", b"1"), ("b.jpg", b"B")])
    told = []
    distant = Socket(path.read_bytes())
    index = index_stream(distant, "x", Rules(IMAGES), lambda *note: told.append(note))
    local = index_tar(path, extensions=IMAGES)
    assert index.records.tolist() == local.records.tolist()
    assert (index.tar_bytes, index.tar_sha256) == (local.tar_bytes, local.tar_sha256)
    assert told == []


def test_long_names_stand_in_extra_blocks(tmp_path):
    path = make_tar(tmp_path / "x.tar", [("a.jpg", b"1"), ("b" * 150 + ".jpg", b"2")])
    assert [header_range(r)[1] for r in index_tar(path, extensions=IMAGES).records] == [512, 1536]


def test_members_of_a_sample_may_lie_apart(tmp_path):
    members = [("a.jpg", b"A"), ("b.jpg", b"B"), ("a.cls", b"3"), ("b.cls", b"4")]
    told = []
    path = make_tar(tmp_path / "x.tar", members)
    index = index_tar(path, extensions=IMAGES, report=lambda *note: told.append(note))
    assert index.records["label"].tolist() == [3, 4]
    apart = "its members do not stand together; webdataset makes two samples of them"
    assert told == [("a", apart), ("b", apart)]


def test_what_is_left_out_is_reported(tmp_path):
    members = [
        ("a.json", b"{}"),
        ("b.jpg", b"B"),
        ("b.jpg", b"again"),
        ("bad.jpg", b"bad"),
        ("c.left.png", b"C"),
        ("c.right.png", b"C2"),
        ("d.cls", b"1"),
    ]
    told = []

    def inspect(data):
        if data == b"bad":
            raise SampleError("does not decode: bad")
        return 7, 5

    path = make_tar(tmp_path / "x.tar", members)
    index = index_tar(path, extensions=IMAGES, inspect=inspect, report=lambda *n: told.append(n))
    assert keys_of(path, index) == ["b", "c"]
    assert index.extensions == ("jpg", "left.png")
    assert index.records[["width", "height"]].tolist() == [(7, 5), (7, 5)]
    several = (
        "1 samples have several payloads, 'c' for one (left.png, right.png): "
        "the first is used; choose another by its extension"
    )
    assert sorted(told) == [
        ("", several),
        ("a", "no payload among its members json"),
        ("b", "a second member 'jpg' of this key; only the first is used"),
        ("bad", "does not decode: bad"),
        ("d", "no payload among its members cls"),
    ]


@pytest.mark.parametrize("text", [b"cat", b"", b"-3", b"99999999999", b"\xff"])
def test_labels_that_are_no_class_ids_are_none(tmp_path, text):
    path = make_tar(tmp_path / "x.tar", [("a.cls", text), ("a.jpg", b"A")])
    assert index_tar(path, extensions=IMAGES).records["label"].tolist() == [-1]


def test_folders_and_links_are_no_samples(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (("d.jpg", tarfile.DIRTYPE), ("l.jpg", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "x"
            tar.addfile(info)
    assert len(index_tar(path, extensions=IMAGES)) == 0


MEMBER = 512 + 1024  # header and padded payload of the tar below


@pytest.mark.parametrize(
    ("keep", "flip", "match"),
    [
        (2 * MEMBER, None, f"cut or damaged at byte {2 * MEMBER:,}"),
        (2 * MEMBER + 100, None, f"cut or damaged at byte {2 * MEMBER:,}"),
        (2 * MEMBER + 600, None, "a cut one"),
        (None, 2 * MEMBER + 5, f"cut or damaged at byte {2 * MEMBER:,}"),
        (0, None, "no plain tar"),
    ],
    ids=["between members", "in a header", "in a payload", "damaged header", "empty"],
)
def test_cuts_and_damage_that_tarfile_passes_over_are_errors(tmp_path, keep, flip, match):
    path = make_tar(tmp_path / "x.tar", [(f"{i}.jpg", b"x" * 700) for i in range(4)])
    data = bytearray(path.read_bytes()[:keep])
    if flip is not None:
        data[flip] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardError, match=match):
        index_tar(path, extensions=IMAGES)


def test_compressed_tars_are_refused(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w:gz"):
        pass
    with pytest.raises(ShardError, match="unpack it if compressed"):
        index_tar(path, extensions=IMAGES)


def test_bytes_of_an_index_are_the_specified_ones(tmp_path):
    row = (1024, -5, 700, 0xDEADBEEF, 3, 640, 480, 1, 0x0201)
    index = Index(np.array([row], RECORD), ("jpg", "png"), 10_240, "ab" * 32)
    tar = tmp_path / "x.tar"
    write_index(tar, index)
    assert index_path(tar).name == "x.tar.idx"
    assert index_path(tar).read_bytes() == (
        b"sslpidx\0"
        + struct.pack("<HHIQ", 1, 7, 1, 10_240)
        + b"\xab" * 32
        + b"jpg\npng"
        + struct.pack("<QqIIiHHHH", *row)
    )
    again = read_index(tar)
    assert again.records.tolist() == [row]
    assert (again.extensions, again.tar_bytes, again.tar_sha256) == (
        ("jpg", "png"), 10_240, "ab" * 32,
    )  # fmt: skip
    assert RECORD.itemsize == 36


def test_damaged_indexes_are_refused_with_what_to_do(tmp_path):
    tar = make_tar(tmp_path / "x.tar", [("a.jpg", b"A")])
    write_index(tar, index_tar(tar, extensions=IMAGES))
    data = index_path(tar).read_bytes()
    for changed, match in (
        (b"", "is no shard index; pack again"),
        (b"x" + data[1:], "is no shard index"),
        (data[:8] + b"\x02\0" + data[10:], "index version 2, this sslpipe reads 1"),
        (data[:-1], r"was cut or changed: 94 of 95 bytes"),
        (data + b"\0", r"was cut or changed: 96 of 95 bytes"),
    ):
        with pytest.raises(ShardError, match=match):
            parse_index(changed, "x.tar.idx")
    index_path(tar).unlink()
    with pytest.raises(ShardError, match=r"x.tar.idx: cannot be read \(No such file"):
        read_index(tar)


@pytest.mark.parametrize("header", [b"", b"\0" * 512, b"x" * 512, b"x" * 1024])
def test_damaged_tar_headers_are_sample_errors(header):
    with pytest.raises(SampleError, match="damaged tar header"):
        parse_header(header)


@pytest.mark.parametrize(
    "name",
    ["a.b/c.d.e", "./c.jpg", "a/.hidden", ".x", "plain", "d.ir/plain", "a/b.", "ü/é.x", "a//b.c"],
)
def test_names_are_split_as_webdataset_splits_them(name):
    assert (split_name(name) or (None, None)) == base_plus_ext(name)


def test_gpu_jpegs_are_baseline_with_three_components(picture):
    from PIL import Image

    def jpeg(mode, **settings):
        file = io.BytesIO()
        Image.new(mode, (8, 8)).save(file, "JPEG", **settings)
        return file.getvalue()

    base = jpeg("RGB")
    assert is_gpu_jpeg(base)
    assert is_gpu_jpeg(base[:2] + b"\xff\xff" + base[2:][1:])  # fill byte
    assert not is_gpu_jpeg(jpeg("RGB", progressive=True))
    assert not is_gpu_jpeg(jpeg("L"))
    assert not is_gpu_jpeg(jpeg("CMYK"))
    assert not is_gpu_jpeg(picture(0, "PNG"))
    assert not any(is_gpu_jpeg(base[:n]) for n in range(100))
