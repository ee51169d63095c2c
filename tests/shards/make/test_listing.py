"""Which files, keys, classes: pytest tests/shards/make/test_listing.py"""

import os

import pytest

from sslpipe.errors import ShardError
from sslpipe.shards import PackSettings, pack, verify
from sslpipe.shards.make import listing


def test_classes_are_the_sorted_first_level_folders(folder, tmp_path, codec, picture, by_index):
    deep = folder / "ant" / "left" / "wing.jpg"
    deep.parent.mkdir(parents=True)
    deep.write_bytes(picture(50))
    manifest = pack(folder, tmp_path / "out", PackSettings(codec=codec)).manifest
    assert manifest.classes == ("ant", "cat", "dog")
    names = ("ant", "cat", "dog")
    for key, _, _, label in by_index(manifest):
        first, slash, _ = key.partition("/")
        assert label == (names.index(first) if slash else -1)


def test_no_folders_no_labels(tmp_path, codec, picture, by_webdataset, by_index):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(picture(0))
    manifest = pack(tmp_path / "in", tmp_path / "out", PackSettings(codec=codec)).manifest
    assert manifest.classes == ()
    assert [s[3] for s in by_index(manifest)] == [-1]
    assert "cls" not in by_webdataset(manifest)[0]


def test_keys_are_safe_and_unique(tmp_path, codec, picture, by_webdataset, by_index):
    root = tmp_path / "in"
    names = {
        "a.jpg": "a",
        "a.png": "a_2",
        "a.v1.jpg": "a_v1",
        "a_v1.jpg": "a_v1_2",
        "__x__.jpg": "_x__",
        "___d/n.01/__y.jpg": "_d/n.01/_y",
        "u..p/tab\there.jpg": "u_p/tab_here",
        "new\nline.jpg": "new_line",
    }
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number, "PNG" if name.endswith("png") else "JPEG"))
    manifest = pack(root, tmp_path / "out", PackSettings(codec=codec)).manifest
    packed = {key: payload for key, _, payload, _ in by_index(manifest)}
    assert packed == {key: (root / name).read_bytes() for name, key in names.items()}
    assert {s["__key__"] for s in by_webdataset(manifest)} == set(names.values())


def test_unicode_and_long_names(tmp_path, codec, picture, by_webdataset, by_index):
    root = tmp_path / "in"
    names = ["Ålesund/海.jpg", "🐈.jpg", "x" * 120 + ".jpg", "/".join(["d" * 90] * 5) + "/é.jpg"]
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(number))
    manifest = pack(root, tmp_path / "out", PackSettings(codec=codec)).manifest
    expected = {name.removesuffix(".jpg") for name in names}
    assert {s["__key__"] for s in by_webdataset(manifest)} == expected
    assert {key for key, *_ in by_index(manifest)} == expected
    assert verify(manifest, codec=codec) == []


def test_a_name_in_no_encoding(tmp_path, codec, picture, by_index):
    root = tmp_path / "in"
    root.mkdir()
    (root / os.fsdecode(b"caf\xe9.jpg")).write_bytes(picture(0))
    (root / "b.jpg").write_bytes(b"")
    manifest = pack(root, tmp_path / "out", PackSettings(codec=codec)).manifest
    assert [key for key, *_ in by_index(manifest)] == ["caf_"]


def test_names_in_no_encoding_stay_apart(tmp_path, codec, picture, by_index):
    for number, name in enumerate((b"caf\xe9", b"caf\xe8")):
        for place in (b"in/%b.jpg", b"in/%b/x.jpg"):
            path = tmp_path / os.fsdecode(place % name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(number))
    manifest = pack(tmp_path / "in", tmp_path / "out", PackSettings(codec=codec)).manifest
    assert sorted(key for key, *_ in by_index(manifest)) == [
        "caf_", "caf_/x", "caf_/x_2", "caf__2",
    ]  # fmt: skip
    assert manifest.classes == ("caf%E8", "caf%E9")


def test_links_are_followed_but_not_in_circles(folder, tmp_path, codec, picture, by_index):
    other = tmp_path / "other"
    other.mkdir()
    (other / "far.jpg").write_bytes(picture(70))
    (folder / "emu").symlink_to(other)
    (folder / "cat" / "loop").symlink_to(folder)
    manifest = pack(folder, tmp_path / "out", PackSettings(codec=codec)).manifest
    keys = {key for key, *_ in by_index(manifest)}
    assert "emu/far" in keys
    assert manifest.samples == 21


def test_out_inside_the_folder_is_not_packed(folder, codec):
    out = folder / "cat" / "out"
    out.mkdir(parents=True)
    (out / "mine.jpg").write_bytes(b"would be left out without a word")
    with pytest.raises(ShardError, match="is one of the folders to pack; name a new one"):
        pack(folder, out, PackSettings(codec=codec))
    (out / "mine.jpg").unlink()
    report = pack(folder, out, PackSettings(codec=codec))
    assert report.manifest.samples == 20
    assert (report.failures, report.skipped) == ((), ())


def test_equal_sample_ids_are_refused(folder, tmp_path, codec, monkeypatch):
    monkeypatch.setattr(listing, "sample_id", lambda key: 7)
    with pytest.raises(ShardError, match="have the same sample id; rename one"):
        pack(folder, tmp_path / "out", PackSettings(codec=codec))
