"""Shards where they lie: every way of reading gives the same samples, every fault its error."""

import json
import logging
import shutil
from dataclasses import replace

import fsspec
import pytest

from sslpipe.errors import SampleError, ShardError, SslpipeError
from sslpipe.shards import open_manifest, read_index, read_manifest
from sslpipe.shards.manifest import write_manifest
from sslpipe.shards.read.download import Patience
from sslpipe.shards.read.store import open_store
from tests.reading import Reader
from tests.servers import serve

QUICK = Patience(attempts=3, first=0.001, longest=0.002)


def samples(manifest, **settings):
    """Every sample of a set through a store."""
    store = open_store(manifest, patience=QUICK, **settings)
    reader = Reader(store)
    try:
        return [
            reader.read(number, row)
            for number, shard in enumerate(manifest.shards)
            for row in range(shard.samples)
        ]
    finally:
        store.close()


@pytest.fixture
def folder(packed, tmp_path):
    return shutil.copytree(packed, tmp_path / "packed")


@pytest.fixture
def server(folder):
    with serve(folder) as server:
        yield server


@pytest.fixture(scope="module")
def truth(packed):
    return samples(open_manifest(packed))


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 0x01
    path.write_bytes(data)


def test_http_in_ranges_and_through_a_cache(server, tmp_path, truth, caplog):
    manifest = open_manifest(server.url)
    assert manifest == open_manifest(f"{server.url}/manifest.json")
    assert samples(manifest) == truth
    assert "read in ranges, which is slow; set run.cache" in caplog.text
    assert len(server.ranges) == len(truth)
    server.ranges.clear()
    for _ in range(2):
        assert samples(manifest, cache=tmp_path / "cache", cache_gb=0.01) == truth
    assert len(server.ranges) == len(manifest.shards)


def test_memory(folder, tmp_path, truth):
    fsspec.filesystem("memory").put(f"{folder}/", "/store-set/", recursive=True)
    manifest = open_manifest("memory://store-set")
    assert samples(manifest) == truth
    assert samples(manifest, cache=tmp_path / "cache", cache_gb=0.01) == truth


def test_file_urls_are_local(folder, truth):
    assert samples(open_manifest(f"file://{folder}")) == truth


def test_distant_tars_with_a_local_manifest_and_indexes(server, folder, tmp_path, truth):
    manifest = open_manifest(folder)
    shards = tuple(
        replace(shard, url=f"{server.url}/{shard.file}") if number % 2 else shard
        for number, shard in enumerate(manifest.shards)
    )
    here = tmp_path / "here"
    here.mkdir()
    write_manifest(replace(manifest, root=here, shards=shards))
    for number, shard in enumerate(manifest.shards):
        shutil.copy(manifest.index(shard), here)
        if not number % 2:
            shutil.copy(manifest.tar(shard), here)
    mixed = open_manifest(here)
    assert samples(mixed, cache=tmp_path / "cache", cache_gb=0.01) == truth
    assert len(server.ranges) == len(shards) // 2
    with pytest.raises(ShardError, match="is not on this machine; copy the set to a folder first"):
        mixed.tar(mixed.shards[1])


def test_a_tar_elsewhere_on_this_machine(folder, tmp_path, truth):
    manifest = open_manifest(folder)
    first = manifest.shards[0]
    (tmp_path / "else").mkdir()
    shutil.move(manifest.tar(first), tmp_path / "else" / "other.tar")
    for url in (f"{tmp_path}/else/other.tar", f"file://{tmp_path}/else/other.tar"):
        moved = (replace(first, url=url), *manifest.shards[1:])
        write_manifest(replace(manifest, shards=moved))
        assert samples(open_manifest(folder)) == truth


def test_want_fetches_in_order_and_ends_leases(server, tmp_path):
    manifest = open_manifest(server.url)
    cache = tmp_path / "cache"
    store = open_store(manifest, cache=cache, cache_gb=0.01, patience=QUICK, processes=2)
    assert store.room == 5_000_000
    assert store.fetched.tolist() == [shard.bytes for shard in manifest.shards]
    store.want([2, 0])
    store._downloads.shutdown()
    assert sorted(path for path, *_ in server.ranges) == [
        f"/{manifest.shards[n].file}" for n in (0, 2)
    ]
    assert 0 in store._opened
    assert 2 in store._opened
    store.want([2])
    assert 0 not in store._opened
    assert len(list(cache.rglob("*.tar"))) == 2  # a lease has ended, the tar stays
    store.close()
    assert 2 not in store._opened


def test_an_error_ahead_of_the_reader_waits_for_the_reader(server, tmp_path, caplog):
    manifest = open_manifest(server.url)
    store = open_store(manifest, cache=tmp_path / "cache", cache_gb=0.01, patience=QUICK)
    server.faults.extend(["500"] * 3)
    store.want([1])
    store._downloads.shutdown()
    assert "not fetched ahead: http://127" in caplog.text
    assert store.open(1).index.payload(0).size > 0  # the server is well again
    store.close()


def test_the_reader_survives_a_server_that_stumbles(server, tmp_path, truth):
    server.faults.extend(["drop", "500", "", "short", "slow", "drop"])
    assert samples(open_manifest(server.url), cache=tmp_path / "c", cache_gb=0.01) == truth
    server.faults.extend(["drop", "500", "", "short", "drop"])
    assert samples(open_manifest(server.url)) == truth


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("500", "tar: cannot be read: 3 attempts, the last: ClientResponseError: 500"),
        ("404", "tar: is missing; pack again or copy it again"),
        ("403", "tar: cannot be read: 1 attempts, the last: ClientResponseError: 403"),
        ("drop", "tar: cannot be read: 3 attempts, the last: ClientPayloadError"),
    ],
)
def test_a_server_that_does_not_recover(server, tmp_path, fault, message):
    manifest = open_manifest(server.url)
    for cache in (None, tmp_path / "cache"):
        server.faults.clear()
        server.faults.extend([fault] * 3)
        with pytest.raises(ShardError, match=rf"{server.url}/.*{message}"):
            samples(manifest, cache=cache, cache_gb=0.01)
    assert not list((tmp_path / "cache").rglob("*.*"))


def test_wrong_bytes_from_a_server(server, tmp_path):
    manifest = open_manifest(server.url)
    server.faults.append("flip")
    with pytest.raises(ShardError, match="is not the tar of the manifest"):
        samples(manifest, cache=tmp_path / "cache", cache_gb=0.01)
    server.faults.append("flip")
    with pytest.raises(SampleError, match=r"sample 0 \(class.*CRC32"):
        samples(manifest)
    server.faults.append("whole")
    with pytest.raises(ShardError, match=r"knows no byte ranges; set run.cache"):
        samples(manifest)


def test_a_cache_at_the_home_of_nobody_is_refused(server):
    manifest = open_manifest(server.url)
    with pytest.raises(
        SslpipeError, match=r"run.cache: '~no_such_user/c': there is no such home; w"
    ):
        samples(manifest, cache="~no_such_user/c")


def test_bits_flipped_in_payload_header_and_index(folder):
    manifest = open_manifest(folder)
    first, second, third = manifest.shards[:3]
    record = read_index(manifest.tar(first)).payloads[1]
    flip(manifest.tar(first), int(record["offset"]) + 9)
    reader = Reader(open_store(manifest))
    with pytest.raises(SampleError, match=rf"{first.file} sample 1 \(class.*CRC32 of the index"):
        reader.read(0, 1)
    assert reader.read(0, 2).data
    flip(
        manifest.tar(second), int(read_index(manifest.tar(second)).payloads["offset"][0]) - 512 + 8
    )
    with pytest.raises(SampleError, match=rf"{second.file} sample 0: damaged tar header \(it nam"):
        reader.read(1, 0)
    flip(manifest.index(third), -1)
    with pytest.raises(ShardError, match=r"idx: was changed \(SHA-256 differs"):
        reader.read(2, 0)


def test_cut_vanished_and_exchanged_files(folder):
    manifest = open_manifest(folder)
    first, second, third = manifest.shards[:3]
    with manifest.tar(first).open("r+b") as file:
        file.truncate(1024)
    reader = Reader(open_store(manifest))
    with pytest.raises(ShardError, match=r"0.tar: was cut or changed: 1,024 of .* bytes; pack"):
        reader.read(0, 0)
    manifest.tar(second).unlink()
    with pytest.raises(ShardError, match=r"1.tar: is missing; pack again or copy it again"):
        reader.read(1, 0)
    shutil.copy(manifest.index(first), manifest.index(third))
    with pytest.raises(ShardError, match=r"2.tar.idx: is the index of another tar; pack again"):
        reader.read(2, 0)
    manifest.index(third).unlink()
    with pytest.raises(ShardError, match=r"2.tar.idx: cannot be read .*; pack or copy it again"):
        reader.read(2, 0)


def test_a_shard_of_the_same_size_with_other_bytes(folder):
    """Of another version of the set: the CRC finds it."""
    manifest = open_manifest(folder)
    first = manifest.shards[0]
    manifest.tar(first).write_bytes(bytes(first.bytes))
    with pytest.raises(SampleError, match="damaged tar header"):
        Reader(open_store(manifest)).read(0, 0)


def test_an_open_shard_that_vanishes_is_read_to_its_end(folder):
    manifest = open_manifest(folder)
    reader = Reader(open_store(manifest))
    reader.read(0, 0)
    manifest.tar(manifest.shards[0]).unlink()
    assert reader.read(0, 1).data


def test_a_manifest_of_another_set_is_found_by_its_indexes(folder, sample):
    wrong = json.loads((sample / "manifest.json").read_text())
    right = json.loads((folder / "manifest.json").read_text())
    for theirs, ours in zip(wrong["shards"], right["shards"], strict=False):
        theirs["file"], theirs["bytes"] = ours["file"], ours["bytes"]
    (folder / "manifest.json").write_text(json.dumps(wrong))
    with pytest.raises(ShardError, match="is the index of another tar"):
        samples(open_manifest(folder))


def test_few_files_are_looked_at_when_a_large_set_is_opened(folder, monkeypatch, caplog):
    caplog.set_level(logging.ERROR)
    manifest = read_manifest(folder)
    many = [replace(manifest.shards[0], file=f"x-{n:05d}.tar") for n in range(1000)]
    write_manifest(replace(manifest, shards=tuple(many)))
    with pytest.raises(ShardError, match=r"x-00000.tar: is missing"):
        open_manifest(folder)
    looked = []
    monkeypatch.setattr("sslpipe.shards.manifest.size_fault", lambda _, shard: looked.append(shard))
    open_manifest(folder)
    assert len(looked) == 16
    assert (looked[0], looked[-1]) == (many[0], many[-1])
    write_manifest(replace(manifest, shards=(*manifest.shards, manifest.shards[0])))
    with pytest.raises(ShardError, match=r"000000.tar' twice"):
        open_manifest(folder)
