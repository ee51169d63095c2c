"""New versions of a manifest: what is left out, what stays, and what logs must say."""

import json

import pytest

from sslpipe.errors import ShardError
from sslpipe.shards import PackSettings, exclude_rows, open_manifest, pack, read_index, verify


@pytest.fixture
def packed(folder, tmp_path, codec):
    pack(folder, tmp_path / "out", PackSettings(codec=codec, shard_bytes=20_000))
    return tmp_path / "out"


def flip(manifest, shard, row):
    tar = manifest.tar(manifest.shards[shard])
    record = read_index(tar).payloads[row]
    data = bytearray(tar.read_bytes())
    data[int(record["offset"]) + 5] ^= 1
    tar.write_bytes(data)


def line(manifest, shard, row):
    return json.dumps({"manifest": manifest.fingerprint, "shard": shard, "row": row}) + "\n"


def test_what_verify_finds_is_excluded_once_and_then_not_reported(packed, codec):
    before = open_manifest(packed)
    flip(before, 0, 1)
    flip(before, 1, 0)
    problems = verify(before, codec=codec)
    assert {(p.shard, p.row) for p in problems if p.row is not None} == {
        (before.shards[0].file, 1), (before.shards[1].file, 0),
    }  # fmt: skip
    after = exclude_rows(before, problems=problems)
    assert after == open_manifest(packed)
    assert after.exclude == {before.shards[0].file: (1,), before.shards[1].file: (0,)}
    assert after.fingerprint != before.fingerprint
    assert all(problem.row is None for problem in verify(after, codec=codec))
    assert open_manifest(packed / f"manifest-{before.fingerprint[3:11]}.json") == before
    again = exclude_rows(after, problems=problems)
    assert again == after
    assert len(list(packed.glob("manifest*.json"))) == 2


def test_logs_add_to_what_is_excluded_and_lines_of_other_sets_are_passed_over(packed, tmp_path):
    before = open_manifest(packed)
    file = max(before.shards, key=lambda shard: shard.samples).file
    log = tmp_path / "quarantine.jsonl"
    other = json.dumps({"manifest": "b2:other", "shard": file, "row": 0}) + "\n"
    log.write_text(line(before, file, 2) + other + line(before, file, 1) + line(before, file, 2))
    first = exclude_rows(before, logs=[log])
    assert first.exclude == {file: (1, 2)}
    log.write_text(line(first, file, 0))
    assert exclude_rows(first, logs=[log]).exclude == {file: (0, 1, 2)}


def test_logs_that_cannot_be_meant_are_refused(packed, tmp_path):
    manifest = open_manifest(packed)
    log = tmp_path / "quarantine.jsonl"
    with pytest.raises(ShardError, match="cannot be read"):
        exclude_rows(manifest, logs=[log])
    log.write_text(line(manifest, manifest.shards[0].file, 10_000))
    with pytest.raises(ShardError, match="names no row"):
        exclude_rows(manifest, logs=[log])
    log.write_text('{"manifest": "b2')
    with pytest.raises(ShardError, match=r"quarantine.jsonl:1: is no line"):
        exclude_rows(manifest, logs=[log])
    assert open_manifest(packed) == manifest
