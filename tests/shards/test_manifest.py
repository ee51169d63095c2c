"""Opening a shard set: pytest tests/shards/test_manifest.py"""

import hashlib
import json
from dataclasses import replace

import pytest

from sslpipe.errors import ShardError
from sslpipe.shards import PackSettings, open_manifest, pack, read_manifest
from sslpipe.shards.manifest import write_manifest


@pytest.fixture
def out(folder, tmp_path, codec):
    pack(folder, tmp_path / "out", PackSettings(codec=codec, shard_bytes=20_000))
    return tmp_path / "out"


def edit(out, **changes):
    file = out / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_folder_and_file_open_the_same(out):
    manifest = open_manifest(out)
    assert manifest == open_manifest(str(out / "manifest.json"))
    assert manifest.name == "photos"
    assert manifest.root == out
    assert manifest.classes == ("cat", "dog")
    assert (manifest.seed, manifest.resize) == (0, None)
    assert (manifest.modality, manifest.extent) == ("image", ("height", "width"))
    assert manifest.flags == {"gpu_jpeg": 1}
    assert manifest.samples == 20 == sum(shard.samples for shard in manifest.shards)


def test_what_pack_returns_is_what_is_read(folder, tmp_path, codec):
    report = pack(
        folder, tmp_path / "out", PackSettings(codec=codec, resize=20, seed=3, name="small")
    )
    assert report.manifest == open_manifest(tmp_path / "out")
    assert (report.manifest.seed, report.manifest.resize) == (3, 20)


def test_hashes_are_those_of_the_files(out):
    manifest = open_manifest(out)
    for shard in manifest.shards:
        assert shard.sha256 == hashlib.sha256(manifest.tar(shard).read_bytes()).hexdigest()
        assert shard.index_sha256 == hashlib.sha256(manifest.index(shard).read_bytes()).hexdigest()


def test_fingerprint_is_of_content_and_order(out):
    manifest = open_manifest(out)
    lines = "".join(f"{s.samples} {s.sha256}\n" for s in manifest.shards)
    expected = "b2:" + hashlib.blake2b(lines.encode(), digest_size=16).hexdigest()
    assert manifest.fingerprint == expected
    edit(out, name="other", classes=["x", "y"])
    assert open_manifest(out).fingerprint == expected
    edit(out, shards=json.loads((out / "manifest.json").read_text())["shards"][::-1])
    assert open_manifest(out).fingerprint != expected


def test_indexes_are_not_read_at_open(out):
    for path in out.glob("*.idx"):
        path.unlink()
    assert open_manifest(out).samples == 20


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", r"manifest.json: is not JSON .*; name a set, or pack it again"),
        ("\udc00", "is not JSON"),
        ("[]", "is no shard manifest; give the folder"),
        ('{"version": 1}', "is no shard manifest"),
        (
            '{"format": "sslpipe-shards", "version": 9}',
            "manifest written by a newer sslpipe",
        ),
        ('{"format": "sslpipe-shards", "version": 2}', r"name: field required; pack again"),
    ],
)
def test_damaged_manifests(out, text, match):
    (out / "manifest.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ShardError, match=match):
        open_manifest(out)


def test_missing_manifest(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "x" / "manifest.json"):
        with pytest.raises(ShardError, match=r"no manifest; make one with `sslpipe pack FOLDER"):
            open_manifest(path)


def test_no_shards(out):
    edit(out, shards=[])
    with pytest.raises(ShardError, match="lists no shards"):
        open_manifest(out)


def test_wrong_types_name_their_place(out):
    shards = json.loads((out / "manifest.json").read_text())["shards"]
    edit(out, shards=[shards[0], shards[1] | {"samples": 0}])
    with pytest.raises(ShardError, match=r"shards.1.samples: input should be greater than 0"):
        open_manifest(out)


@pytest.mark.parametrize(
    "name", ["../x.tar", "/etc/passwd", "a\\b.tar", "C:x.tar", "..", "", "a\0"]
)
def test_paths_out_of_the_folder_are_refused(out, name):
    shards = json.loads((out / "manifest.json").read_text())["shards"]
    edit(out, shards=[shards[0] | {"file": name}])
    with pytest.raises(ShardError, match="is no plain file name"):
        open_manifest(out)


def test_cut_and_vanished_shards(out):
    manifest = open_manifest(out)
    tar, shard = manifest.tar(manifest.shards[1]), manifest.shards[1]
    tar.write_bytes(tar.read_bytes()[:1024])
    expected = f"was cut or changed: 1,024 of {shard.bytes:,} bytes; pack again or copy it again"
    with pytest.raises(ShardError, match=expected):
        open_manifest(out)
    tar.unlink()
    with pytest.raises(ShardError, match=rf"{tar.name}: is missing; pack again or copy"):
        open_manifest(out)
    assert read_manifest(out) == manifest


def test_excluded_rows_are_kept_and_make_another_set(out):
    manifest = read_manifest(out)
    name = manifest.shards[0].file
    write_manifest(replace(manifest, exclude={name: (1, 0, 1)}))
    again = read_manifest(out)
    assert again.exclude == {name: (0, 1)}
    assert again.fingerprint != manifest.fingerprint


def test_a_row_that_does_not_exist_is_no_exclusion(out):
    manifest = read_manifest(out)
    shard = manifest.shards[0]
    write_manifest(replace(manifest, exclude={shard.file: (shard.samples,)}))
    with pytest.raises(ShardError, match=rf"exclude.{shard.file}.*rows 0 to {shard.samples - 1}"):
        read_manifest(out)


@pytest.mark.parametrize("value", ["3", 3.0, True, -1, 2**70])
@pytest.mark.parametrize("place", ["shards.1.samples", "shards.0.bytes", "resize", "flags.new"])
def test_a_number_is_one_that_arrays_can_hold_and_no_text(out, place, value):
    document = json.loads((out / "manifest.json").read_text())
    *above, last = [int(part) if part.isdecimal() else part for part in place.split(".")]
    inner = document
    for part in above:
        inner = inner[part]
    inner[last] = value
    (out / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(ShardError, match=rf"manifest\.json: {place}: input should be .*; pack"):
        open_manifest(out)
