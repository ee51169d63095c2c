"""Packing: pytest tests/shards/make/test_pack.py"""

import json
import tarfile

import numpy as np
import pytest

from sslpipe.errors import ShardError
from sslpipe.rng import sample_id
from sslpipe.shards import PackSettings, pack, read_index, verify
from sslpipe.shards import pack as pack_folder
from sslpipe.shards.make.inputs import folders


def content(folder):
    """Relative path -> bytes of every file."""
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_webdataset_reads_every_sample_byte_for_byte(
    folder, tmp_path, codec, by_webdataset, by_index
):
    manifest = pack(
        folder, tmp_path / "out", PackSettings(codec=codec, shard_bytes=20_000)
    ).manifest
    assert len(manifest.shards) > 2
    theirs, ours = by_webdataset(manifest), list(by_index(manifest))
    assert [s["__key__"] for s in theirs] == [key for key, *_ in ours]
    for sample, (_, ext, payload, label) in zip(theirs, ours, strict=True):
        assert sample[ext] == payload
        assert int(sample["cls"]) == label
        assert set(sample) - {"__key__", "__url__", "__local_path__"} == {ext, "cls"}


def test_payloads_are_the_original_files(folder, tmp_path, codec, by_index):
    manifest = pack(folder, tmp_path / "out", PackSettings(codec=codec)).manifest
    files = {p.relative_to(folder).with_suffix("").as_posix(): p for p in folder.rglob("*.*")}
    packed = {key: (ext, payload) for key, ext, payload, _ in by_index(manifest)}
    assert packed.keys() == files.keys()
    for key, (ext, payload) in packed.items():
        assert payload == files[key].read_bytes()
        assert ext == files[key].suffix[1:].lower()


def test_order_is_shuffled_by_seed_and_not_by_listing(
    folder, tmp_path, codec, monkeypatch, by_index
):
    def keys(out, seed):
        return [
            s[0] for s in by_index(pack(folder, out, PackSettings(codec=codec, seed=seed)).manifest)
        ]

    first = keys(tmp_path / "a", 0)
    assert first != sorted(first)
    assert first != keys(tmp_path / "b", 1)
    walk = folders.walk_local
    monkeypatch.setattr(folders, "walk_local", lambda *a: reversed(list(walk(*a))))
    assert first == keys(tmp_path / "c", 0)


def test_order_of_the_rest_stays_when_a_file_goes(folder, tmp_path, codec, by_index):
    before = [
        s[0] for s in by_index(pack(folder, tmp_path / "a", PackSettings(codec=codec)).manifest)
    ]
    (folder / "cat" / "4.jpg").unlink()
    after = [
        s[0] for s in by_index(pack(folder, tmp_path / "b", PackSettings(codec=codec)).manifest)
    ]
    assert after == [key for key in before if key != "cat/4"]


def test_the_index_says_what_was_packed(folder, tmp_path, codec, by_index):
    manifest = pack(
        folder, tmp_path / "out", PackSettings(codec=codec, shard_bytes=20_000)
    ).manifest
    for shard in manifest.shards:
        index = read_index(manifest.tar(shard))
        assert (index.tar_bytes, index.tar_sha256) == (shard.bytes, shard.sha256)
        assert (index.samples["extent"] == (30, 40, 0, 0)).all()
        for row in range(len(index)):
            jpeg = index.extensions[index.payload(row).ext] == "jpg"
            assert index.sample(row).flags == int(jpeg)
    keys = [s[0] for s in by_index(manifest)]
    uids = [read_index(manifest.tar(s)).samples["uid"] for s in manifest.shards]
    assert np.concatenate(uids).tolist() == [sample_id(key) for key in keys]


def test_shards_keep_to_their_size(folder, tmp_path, codec):
    manifest = pack(
        folder, tmp_path / "out", PackSettings(codec=codec, shard_bytes=20_480)
    ).manifest
    assert all(shard.bytes <= 20_480 for shard in manifest.shards)
    single = pack(folder, tmp_path / "one", PackSettings(codec=codec, shard_bytes=1)).manifest
    assert [shard.samples for shard in single.shards] == [1] * 20


def test_resize(folder, tmp_path, codec):
    manifest = pack(folder, tmp_path / "out", PackSettings(codec=codec, resize=15)).manifest
    assert manifest.resize == 15
    index = read_index(manifest.tar(manifest.shards[0]))
    assert index.extensions == ("cls", "jpg")
    assert (index.samples["extent"] == (15, 20, 0, 0)).all()
    assert (index.samples["flags"] == 1).all()
    assert verify(manifest, codec=codec) == []


def test_bad_files_are_listed_and_never_stop_the_run(folder, tmp_path, codec, picture):
    jpeg, png = picture(60), picture(61, "PNG")
    bad = {
        "cat/empty.jpg": b"",
        "cat/cut.jpg": jpeg[: len(jpeg) // 2],
        "dog/cut.png": png[: len(png) // 2],
        "dog/text.jpg": b"I am no image",
        "zeros.png": b"\0" * 4096,
    }
    for file, data in bad.items():
        (folder / file).write_bytes(data)
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "notes.txt").write_text("hello")
    (folder / "._0.jpg").write_bytes(b"Finder")
    (folder / "png_by_content.jpg").write_bytes(png)
    report = pack(folder, tmp_path / "out", PackSettings(codec=codec))
    reasons = {note.file: note.reason for note in report.failures}
    assert reasons.keys() == {*bad, "gone.jpg"}
    assert reasons["cat/empty.jpg"] == "is empty"
    assert "Premature end of JPEG" in reasons["cat/cut.jpg"]
    assert "No such file" in reasons["gone.jpg"]
    skipped = {note.file: note.reason for note in report.skipped}
    assert skipped == {"notes.txt": "no extension of a payload", "._0.jpg": "hidden file"}
    assert report.manifest.samples == 21
    lines = (tmp_path / "out" / "report.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert {r["file"]: r["reason"] for r in rows if r["kind"] == "failed"} == reasons
    assert {r["file"]: r["reason"] for r in rows if r["kind"] == "skipped"} == skipped


def test_no_report_without_anything_to_report(folder, tmp_path, codec):
    pack(folder, tmp_path / "out", PackSettings(codec=codec))
    assert not (tmp_path / "out" / "report.jsonl").exists()


def test_progress_adds_up(folder, tmp_path, codec):
    (folder / "broken.jpg").write_bytes(b"no")
    told = []
    report = pack(
        folder, tmp_path / "out", PackSettings(codec=codec, shard_samples=4), progress=told.append
    )
    assert len(told) == 6
    assert {(p.stage, p.total) for p in told} == {("pack", 21)}
    assert (sum(p.samples for p in told), sum(p.failed for p in told)) == (21, 1)
    assert sum(p.bytes_in for p in told) == sum(
        p.stat().st_size for p in folder.rglob("*.*") if p.name != "broken.jpg"
    )
    assert sum(p.bytes_out for p in told) == sum(s.bytes for s in report.manifest.shards)


def test_nothing_is_written_outside_out(folder, tmp_path, codec):
    (folder / "broken.jpg").write_bytes(b"no")
    before = content(tmp_path)
    pack(folder, tmp_path / "out", PackSettings(codec=codec, shard_bytes=20_000))
    after = content(tmp_path)
    assert {p: d for p, d in after.items() if p.parts[0] != "out"} == before
    assert not [p for p in after if p.suffix == ".part"]


def test_tars_hold_nothing_of_the_machine(folder, tmp_path, codec):
    manifest = pack(folder, tmp_path / "out", PackSettings(codec=codec)).manifest
    with tarfile.open(manifest.tar(manifest.shards[0])) as tar:
        facts = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar}
    assert facts == {(0, 0, 0, "sslpipe", "sslpipe", 0o444)}
    assert str(tmp_path) not in (tmp_path / "out" / "manifest.json").read_text()


def test_refusals_say_what_to_do(folder, tmp_path, codec):
    def refused(match, source=folder, out=tmp_path / "out", **settings):
        with pytest.raises(ShardError, match=match):
            pack_folder(source, out, PackSettings(codec=codec, **settings))

    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_text("hello")
    (tmp_path / "file").write_text("")
    refused(r"holds nothing to pack \(looked for .avif, .bmp, .gif", source=empty)
    refused("does not exist; check the path", source=tmp_path / "nowhere")
    refused("is a URL; pack into a folder, then copy it", out="s3://bucket/shards")
    refused("is a file; name a new folder", out=tmp_path / "file")
    refused("is the folder to pack", out=folder / "cat" / "..")
    refused("use letters, digits", name="../evil")
    refused("resize = 0: must be 1 or more", resize=0)
    refused("shard_samples = -1: must be 1 or more", shard_samples=-1)
    refused("quality = 101: must be 100 or less", quality=101)
    refused("check = 'look': use decode or header", check="look")
    refused("dedupe = 'all': use none or exact or near", dedupe="all")
    refused("near_bits = 16: must be between 0 and 15", near_bits=16)
    assert not (tmp_path / "out").exists()
    pack(folder, tmp_path / "out", PackSettings(codec=codec))
    before = content(tmp_path / "out")
    refused("already holds packed shards; remove them")
    assert content(tmp_path / "out") == before


def test_all_files_bad_is_an_error_with_a_report(tmp_path, codec):
    root = tmp_path / "in"
    root.mkdir()
    (root / "a.jpg").write_bytes(b"")
    with pytest.raises(ShardError, match=r"none of 1 files decodes; see .*report.jsonl"):
        pack(root, tmp_path / "out", PackSettings(codec=codec))
    assert json.loads((tmp_path / "out" / "report.jsonl").read_text())["file"] == "a.jpg"
    assert not (tmp_path / "out" / "manifest.json").exists()
