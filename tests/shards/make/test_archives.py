"""Tars and zips as inputs: pytest tests/shards/make/test_archives.py"""

import io
import tarfile
import zipfile

import fsspec
import pytest

from sslpipe.errors import ShardError
from sslpipe.shards import PackSettings, pack
from sslpipe.shards.make.listing import list_inputs
from sslpipe.shards.make.source import Note, read


def offer(*inputs, extensions=("jpg", "png")):
    return list_inputs(inputs, out="nowhere", extensions=extensions)


def tarred(path, members, **settings):
    """A tar of (name, bytes); a None makes a link."""
    with tarfile.open(path, "w", **settings) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data or b"")
            if data is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(member, io.BytesIO(data or b""))
    return path


def zipped(path, members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def facts(listing):
    return {
        s.key: (s.label, s.ext, read(s.place), {e: read(p) for e, p in s.extras})
        for s in listing.sources
    }


MEMBERS = [
    ("d/a.cls", b"2\n"),
    ("d/a.jpg", b"image a"),
    ("d/a.txt", b"a caption"),
    ("d/a.meta.json", b"{}"),
    ("b.left.JPG", b"left"),
    ("b.right.jpg", b"right"),
    ("c.cls", b"0"),
    ("c.png", b"c"),
    ("c.npy", b"array"),
    ("c.png", b"again"),
    ("lone.txt", b"no image"),
    ("._c.png", b"Finder"),
    ("link.jpg", None),
    ("../../e__/__f.jpg", b"f"),
    ("/abs/g.jpg", b"g"),
    ("__meta__/h.jpg", b"not a sample"),
    ("é" * 80 + ".jpg", b"long name"),
]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_tars_by_webdatasets_rule(tmp_path, form):
    listing = offer(tarred(tmp_path / "set.tar", MEMBERS, format=form))
    assert facts(listing) == {
        "d/a": (2, "jpg", b"image a", {"txt": b"a caption", "meta.json": b"{}"}),
        "b": (-1, "jpg", b"left", {}),
        "c": (0, "png", b"c", {}),
        "_/_/e__/_f": (-1, "jpg", b"f", {}),
        "abs/g": (-1, "jpg", b"g", {}),
        "é" * 80: (-1, "jpg", b"long name", {}),
    }
    assert listing.classes == ("0", "1", "2")
    assert {s.file: s.size for s in listing.sources}["d/a.jpg"] == 7
    assert sorted(listing.skipped) == [
        Note("._c.png", "hidden file"),
        Note("b.right.jpg", "a second payload of this key"),
        Note("c.npy", "no extension of a payload"),
        Note("c.png", "a second 'png' of this key"),
        Note("link.jpg", "is no regular file"),
        Note("lone.txt", "no extension of a payload"),
    ]


def test_a_tar_offers_what_webdataset_reads(tmp_path, tars_by_webdataset):
    members = [m for m in MEMBERS if m[1] is not None and not m[0].startswith(("..", "/", "._"))]
    members.remove(("c.png", b"again"))  # webdataset raises
    path = tarred(tmp_path / "set.tar", members)
    theirs = {s["__key__"]: s for s in tars_by_webdataset([path])}
    for key, (_, _, data, extras) in facts(offer(path)).items():
        assert data in theirs[key].values()
        assert all(theirs[key][ext] == text for ext, text in extras.items())


def test_a_packed_set_keeps_its_class_names_and_labels(folder, tmp_path, codec, by_index):
    manifest = pack(
        folder, tmp_path / "out", PackSettings(codec=codec, shard_bytes=20_000)
    ).manifest
    listing = offer(f"{tmp_path}/out/*.tar", extensions=codec.extensions)
    assert listing.classes == ("cat", "dog")
    packed = {key: (label, ext, data, {}) for key, ext, data, label in by_index(manifest)}
    assert facts(listing) == packed
    last = tmp_path / "out" / manifest.shards[-1].file
    assert {*offer(last, extensions=codec.extensions).classes} <= {"cat", "dog"}
    alone = tmp_path / "alone.tar"
    alone.write_bytes(last.read_bytes())
    assert offer(alone, extensions=codec.extensions).classes[:1] == ("0",)


def test_class_names_in_a_tar(tmp_path):
    members = [("1.cls", b"dog"), ("1.jpg", b""), ("2.cls", b"7"), ("2.jpg", b"")]
    listing = offer(tarred(tmp_path / "set.tar", members))
    assert listing.classes == ("7", "dog")
    assert [s.label for s in listing.sources] == [1, 0]
    assert listing.labels.endswith(
        "1 that are numbers (7) are numbered anew with them, because 1 are none ('dog')"
    )


def test_class_numbers_in_a_tar_are_read_as_those_of_tables(tmp_path):
    texts = {"1": b"2.0\n", "2": b" 2 ", "3": b"-1", "4": b"", "5": b"0"}
    members = [(f"{k}.{e}", d) for k, t in texts.items() for e, d in (("cls", t), ("jpg", b"x"))]
    listing = offer(tarred(tmp_path / "set.tar", members))
    assert [s.label for s in listing.sources] == [2, 2, -1, -1, 0]
    below = tarred(tmp_path / "below.tar", [("1.cls", b"-5"), ("1.jpg", b"")])
    with pytest.raises(ShardError, match="-5 is no class number"):
        offer(below)


def test_names_and_numbers_do_not_mix(tmp_path):
    tar = tarred(tmp_path / "a.tar", [("1.cls", b"3"), ("1.jpg", b"")])
    (tmp_path / "in" / "cat").mkdir(parents=True)
    (tmp_path / "in" / "cat" / "2.jpg").write_bytes(b"")
    with pytest.raises(ShardError, match=r"names classes \('cat'\), another numbers them \(3\)"):
        offer(tar, tmp_path / "in")
    huge = tarred(tmp_path / "b.tar", [("1.cls", b"1234567890"), ("1.jpg", b"")])
    with pytest.raises(ShardError, match="1234567890 is no class number"):
        offer(huge)


def test_several_tars_and_a_store(tmp_path):
    tars = [tarred(tmp_path / f"{i}.tar", [("x.jpg", str(i).encode())]) for i in range(3)]
    got = facts(offer(f"{tmp_path}/{{0..2}}.tar"))
    assert {key: data for key, (_, _, data, _) in got.items()} == {
        "x": b"0", "x_2": b"1", "x_3": b"2",
    }  # fmt: skip
    store = fsspec.filesystem("memory")
    store.pipe_file("/tars/1.tar", tars[1].read_bytes())
    try:
        assert facts(offer("memory://tars/1.tar")) == {"x": (-1, "jpg", b"1", {})}
    finally:
        store.rm("/tars", recursive=True)


@pytest.mark.parametrize("keep", [700, 1024, 1600])
def test_cut_tars_are_refused(tmp_path, keep):
    path = tarred(tmp_path / "set.tar", [("a.jpg", b"x" * 600), ("b.jpg", b"y" * 600)])
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ShardError, match="cut"):
        offer(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_zips_are_folder_trees(tmp_path, method):
    members = [
        ("photos/cat/1.jpg", b"one"),
        ("photos/cat/1.txt", b"text"),
        ("photos/dog/deep/é.v2.png", b"two"),
        ("photos/3.jpg", b"three"),
        ("photos/notes.doc", b""),
        ("photos/.hidden/4.jpg", b""),
        ("photos/._3.jpg", b""),
        ("__MACOSX/photos/._3.jpg", b""),
    ]
    listing = offer(zipped(tmp_path / "photos.zip", members, method))
    assert facts(listing) == {
        "cat/1": (0, "jpg", b"one", {"txt": b"text"}),
        "dog/deep/é_v2": (1, "png", b"two", {}),
        "3": (-1, "jpg", b"three", {}),
    }
    assert [s.size for s in listing.sources] == [5, 3, 3]
    assert sorted(n.file for n in listing.skipped) == ["._3.jpg", "notes.doc"]


def test_a_zip_of_one_class_keeps_it(tmp_path):
    flat = offer(zipped(tmp_path / "a.zip", [("cat/1.jpg", b""), ("cat/2.jpg", b"")]))
    assert flat.classes == ("cat",)
    bare = offer(zipped(tmp_path / "b.zip", [("1.jpg", b""), ("cat/2.jpg", b"")]))
    assert [s.label for s in bare.sources] == [-1, 0]


def test_names_in_zips_are_harmless(tmp_path):
    names = ["../../up.jpg", "/etc/abs.jpg", "./here/__x.jpg", "a/../b.jpg"]
    listing = offer(zipped(tmp_path / "a.zip", [(n, n.encode()) for n in names]))
    got = {key: data.decode() for key, (_, _, data, _) in facts(listing).items()}
    assert got == {"up": names[0], "etc/abs": names[1], "here/_x": names[2], "a/b": names[3]}


def test_zips_of_windows_are_folder_trees_too(tmp_path):
    names = ["photos\\cat\\0.png", "photos\\dog\\1.png", "photos\\2.png", "photos\\cat\\"]
    path = zipped(tmp_path / "a.zip", [(name, name.encode()) for name in names])
    listing = offer(path)
    assert {key: (label, data.decode()) for key, (label, _, data, _) in facts(listing).items()} == {
        "cat/0": (0, names[0]), "dog/1": (1, names[1]), "2": (-1, names[2]),
    }  # fmt: skip
    assert listing.skipped == ()


def test_names_that_become_equal_in_a_zip_keep_their_files(tmp_path):
    names = ["a/b.png", "a\\b.png", "a/../b.png", "a/c"]
    listing = offer(zipped(tmp_path / "a.zip", [(name, name.encode()) for name in names]))
    got = {key: data.decode() for key, (_, _, data, _) in facts(listing).items()}
    assert got == dict(zip(["a/b", "a/b_2", "a/b_3"], names, strict=False))


def test_names_in_latin_1_stay_apart(tmp_path):
    path = tmp_path / "set.tar"
    names = [f"caf\udce9{end}" for end in (".jpg", ".cls")]
    names += [name.replace("\udce9", "\udce8") for name in names]
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for number, name in enumerate(names):
            member, data = tarfile.TarInfo(name), b"caf" + bytes([0xE8 + number // 2])
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    listing = offer(path)
    assert [s.key for s in listing.sources] == ["caf%E8", "caf%E9"]
    assert listing.classes == ("caf%E8", "caf%E9")
    assert listing.skipped == ()


def test_damaged_and_encrypted_zips(tmp_path):
    (tmp_path / "no.zip").write_bytes(b"no zip")
    with pytest.raises(ShardError, match="no zip, or a damaged one"):
        offer(tmp_path / "no.zip")
    path = zipped(tmp_path / "a.zip", [("a.jpg", b"x" * 99), ("b.jpg", b"y")])
    data = bytearray(path.read_bytes())
    directory = data.rfind(b"PK\x01\x02")  # of b.jpg
    data[directory + 8] |= 1  # encrypted
    path.write_bytes(data)
    listing = offer(path)
    assert [s.key for s in listing.sources] == ["a"]
    assert listing.skipped == (Note("b.jpg", "is encrypted"),)


def test_members_above_the_limit_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr("sslpipe.shards.make.listing.MAX_BYTES", 1000)
    path = zipped(tmp_path / "a.zip", [("bomb.jpg", bytes(10_000)), ("a.jpg", b"x")])
    listing = offer(path)
    assert listing.skipped == (Note("bomb.jpg", "10,000 bytes; the limit is 1,000"),)
