"""Indexes of our tars and of anyone's: pytest tests/shards/test_index.py"""

import hashlib
import io
import struct
import tarfile
import zlib

import pytest
from webdataset.tariterators import base_plus_ext

from sslpipe.errors import SampleError, ShardError
from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.rng import sample_id
from sslpipe.shards import Rules, index_tar, read_index, write_index
from sslpipe.shards.index import (
    MEMBER,
    SAMPLE,
    IndexBuilder,
    IndexedMember,
    index_path,
    parse_index,
)
from sslpipe.shards.scan import index_stream
from sslpipe.shards.tar_headers import parse_header, split_name

PLAIN = Rules(ImageCodec(), look="none")  # payloads are any bytes


def make_tar(path, members, kind=tarfile.GNU_FORMAT):
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def keys_of(path, index):
    data = path.read_bytes()
    places = [index.payload(row) for row in range(len(index))]
    return [split_name(parse_header(data[p.start : p.offset]).name)[0] for p in places]


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
    index = index_tar(path, PLAIN)
    assert keys_of(path, index) == names
    theirs = tars_by_webdataset([path])
    assert [s["__key__"] for s in theirs] == names
    for row, sample in enumerate(theirs):
        members = index.members_of(row)
        assert members.keys() == {"jpg", "cls", "json"}
        for ext, place in members.items():
            data = path.read_bytes()[place.offset :][: place.size]
            assert data == sample[ext]
            assert place.crc == zlib.crc32(data)
        assert members["jpg"] == index.payload(row)
        assert sample["jpg"] == b"pay%d" % row
        record = index.sample(row)
        assert (record.label, record.uid) == (row, sample_id(names[row]))
        assert record.extent == (0, 0, 0, 0)
    assert index.extensions == ("jpg", "cls", "json")
    assert index.tar_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


class Socket(io.BytesIO):
    """Gives fewer bytes than asked for, as sockets do."""

    def read(self, size=-1):
        return super().read(min(size, 100))


def test_short_reads_of_distant_files_are_completed(tmp_path):
    path = make_tar(tmp_path / "x.tar", [("a.jpg", b"A" * 700), ("b.cls", b"1"), ("b.jpg", b"B")])
    told = []
    distant = Socket(path.read_bytes())
    index = index_stream(distant, "x", PLAIN, lambda *note: told.append(note))
    local = index_tar(path, PLAIN)
    assert index.samples.tobytes() == local.samples.tobytes()
    assert index.members.tolist() == local.members.tolist()
    assert (index.tar_bytes, index.tar_sha256) == (local.tar_bytes, local.tar_sha256)
    assert told == []


def test_long_names_stand_in_extra_blocks(tmp_path):
    path = make_tar(tmp_path / "x.tar", [("a.jpg", b"1"), ("b" * 150 + ".jpg", b"2")])
    assert index_tar(path, PLAIN).payloads["blocks"].tolist() == [1, 3]


def test_members_of_a_sample_may_lie_apart(tmp_path):
    members = [("a.jpg", b"A"), ("b.jpg", b"B"), ("a.cls", b"3"), ("b.cls", b"4")]
    told = []
    path = make_tar(tmp_path / "x.tar", members)
    index = index_tar(path, PLAIN, report=lambda *note: told.append(note))
    assert index.samples["label"].tolist() == [3, 4]
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

    class Picky(ImageCodec):
        def inspect(self, data):
            if data == b"bad":
                raise SampleError("does not decode: bad")
            return 5, 7

    path = make_tar(tmp_path / "x.tar", members)
    index = index_tar(path, Rules(Picky(), "decode"), lambda *n: told.append(n))
    assert keys_of(path, index) == ["b", "c"]
    assert index.extensions == ("jpg", "left.png", "right.png")
    assert [list(index.members_of(row)) for row in (0, 1)] == [["jpg"], ["left.png", "right.png"]]
    assert index.extensions[index.payload(1).ext] == "left.png"
    assert index.samples["extent"].tolist() == [[5, 7, 0, 0]] * 2
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


def test_members_that_an_index_cannot_name(tmp_path, monkeypatch):
    members = [("a.jpg", b"A"), ("a.b\nc", b"B"), ("a.\udcff.txt", b"C"), ("b.jpg", b"D")]
    path = make_tar(tmp_path / "x.tar", members)
    told = []
    index = index_tar(path, PLAIN, lambda *note: told.append(note))
    ((key, reason),) = told
    assert key == "a"
    assert reason.startswith("member 'b\\nc' of 1 bytes: it or its name is too long")
    write_index(path, index)
    again = read_index(path)
    assert again.extensions == index.extensions == ("jpg", "\udcff.txt")  # of no encoding
    assert list(again.members_of(0)) == ["jpg", "\udcff.txt"]
    monkeypatch.setattr("sslpipe.shards.index.MAX_EXTENSIONS", 1)
    with pytest.raises(ShardError, match=r"x.tar: 2 different extensions, an index names 1; keys"):
        index_tar(path, PLAIN)


@pytest.mark.parametrize("text", [b"cat", b"", b"-3", b"99999999999", b"\xff"])
def test_labels_that_are_no_class_ids_are_none(tmp_path, text):
    path = make_tar(tmp_path / "x.tar", [("a.cls", text), ("a.jpg", b"A")])
    assert index_tar(path, PLAIN).samples["label"].tolist() == [-1]


def test_folders_and_links_are_no_samples(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (("d.jpg", tarfile.DIRTYPE), ("l.jpg", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "x"
            tar.addfile(info)
    assert len(index_tar(path, PLAIN)) == 0


SPAN = 512 + 1024  # header and padded payload of the tar below


@pytest.mark.parametrize(
    ("keep", "flip", "match"),
    [
        (2 * SPAN, None, f"cut or damaged at byte {2 * SPAN:,}"),
        (2 * SPAN + 100, None, f"cut or damaged at byte {2 * SPAN:,}"),
        (2 * SPAN + 600, None, "a cut one"),
        (None, 2 * SPAN + 5, f"cut or damaged at byte {2 * SPAN:,}"),
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
        index_tar(path, PLAIN)


def test_compressed_tars_are_refused(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w:gz"):
        pass
    with pytest.raises(ShardError, match="unpack it if compressed"):
        index_tar(path, PLAIN)


def test_bytes_of_an_index_are_the_specified_ones(tmp_path):
    builder = IndexBuilder()
    places = [
        IndexedMember("cls", 512, 1, 0xAB, 1),
        IndexedMember("jpg", 1536, 700, 0xDEADBEEF, 3),
    ]
    builder.add(-5, places, payload="jpg", extent=(480, 640), label=3, flags=1 << 31)
    tar = tmp_path / "x.tar"
    write_index(tar, builder.finish(10_240, "ab" * 32))
    assert index_path(tar).name == "x.tar.idx"
    assert index_path(tar).read_bytes() == (
        b"sslpidx\0"
        + struct.pack("<HHIIIQ", 2, 2, 1, 7, 2, 10_240)
        + b"\xab" * 32
        + struct.pack("<q4IiIIHH", -5, 480, 640, 0, 0, 3, 1 << 31, 0, 2, 1)
        + struct.pack("<QIIHH", 512, 1, 0xAB, 0, 1)
        + struct.pack("<QIIHH", 1536, 700, 0xDEADBEEF, 1, 3)
        + b"cls\njpg"
    )
    again = read_index(tar)
    assert again.sample(0) == (-5, 480, 640, 0, 0, 3, 1 << 31, 0, 2, 1)
    assert again.payload(0) == (1536, 700, 0xDEADBEEF, 1, 3)
    assert (again.payload(0).start, again.payload(0).header) == (0, 1536)
    assert again.payloads.tolist() == [again.payload(0)]
    assert (again.extensions, again.tar_bytes, again.tar_sha256) == (
        ("cls", "jpg"), 10_240, "ab" * 32,
    )  # fmt: skip
    assert (SAMPLE.itemsize, MEMBER.itemsize) == (40, 20)


def test_damaged_indexes_are_refused_with_what_to_do(tmp_path):
    tar = make_tar(tmp_path / "x.tar", [("a.jpg", b"A")])
    write_index(tar, index_tar(tar, PLAIN))
    data = index_path(tar).read_bytes()
    beyond = bytearray(data)
    beyond[64 + 36] = 2  # members of the sample
    older = "index version 1, this sslpipe reads 2; run `sslpipe index set` [(]the tars stay"
    for changed, match in (
        (b"", "is no shard index; pack again"),
        (b"x" + data[1:], "is no shard index"),
        (data[:8] + b"\x01\0" + data[10:], older),
        (
            data[:8] + b"\x03\0" + data[10:],
            r"newer sslpipe .version 3, this one reads up to 2",
        ),
        (data[:-1], r"was cut or changed: 126 of 127 bytes"),
        (data + b"\0", r"was cut or changed: 128 of 127 bytes"),
        (bytes(beyond), "names members that it does not have"),
    ):
        with pytest.raises(ShardError, match=match):
            parse_index(changed, "set/x.tar.idx")
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
