"""The node cache: one download per node, leases, a budget, and nobody else's files."""

import errno
import hashlib
import os
import threading
import time

import fsspec
import numpy as np
import pytest

from sslpipe.errors import ShardError
from sslpipe.shards.read import cache as module
from sslpipe.shards.read.cache import Distant, NodeCache, evict, locked, take_lease
from sslpipe.shards.read.download import Patience

QUICK = Patience(attempts=2, first=0.001, longest=0.002)
SIZE = 1000


@pytest.fixture
def tars():
    """Four distant tars of 1,000 bytes."""
    out = []
    for number in range(4):
        content = np.random.default_rng(number).bytes(SIZE)
        fsspec.filesystem("memory").pipe(f"/cache/{number}.tar", content)
        digest = hashlib.sha256(content).hexdigest()
        out.append(Distant(f"memory://cache/{number}.tar", SIZE, digest))
    return out


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def cache_of(folder, budget=10 * SIZE):
    return NodeCache(folder, budget=budget, patience=QUICK)


def used_once(cache, tar):
    """Fetch, and end the lease."""
    os.close(cache.fetch(tar))


def files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_the_name_is_of_place_and_content_and_the_folder_of_the_name(folder, tars):
    used_once(cache_of(folder), tars[0])
    digest = hashlib.blake2b(f"{tars[0].url}\n{tars[0].sha256}".encode(), digest_size=16)
    name = digest.hexdigest()
    assert (folder / name[:2] / f"{name}.tar").read_bytes() == fsspec.open(
        tars[0].url
    ).open().read()
    assert files(folder) == [f"{name}.tar"]  # no part, no lock is left
    assert len({tar.name for tar in tars}) == 4


def test_the_second_time_nothing_is_downloaded(folder, tars, monkeypatch):
    used_once(cache_of(folder), tars[0])
    monkeypatch.setattr(module, "download", None)
    used_once(cache_of(folder), tars[0])


def test_the_one_that_was_needed_the_longest_ago_goes_first(folder, tars):
    cache = cache_of(folder, 3 * SIZE)
    for tar in tars[:3]:
        used_once(cache, tar)
        time.sleep(0.01)
    used_once(cache, tars[0])  # needed again
    used_once(cache, tars[3])
    assert files(folder) == sorted(tar.name for tar in (tars[0], tars[2], tars[3]))


def test_a_lease_keeps_a_tar_and_ends_with_its_descriptor(folder, tars, monkeypatch):
    monkeypatch.setattr(module, "ROOM_WAIT", 0.0)
    cache = cache_of(folder, 2 * SIZE)
    leases = [cache.fetch(tar) for tar in tars[:2]]
    message = r"no room for 1,000 bytes of memory://cache/2.tar.* need 2,000 of 2,000 bytes; raise"
    with pytest.raises(ShardError, match=message):
        cache.fetch(tars[2])
    assert files(folder) == sorted(tar.name for tar in tars[:2])
    os.close(leases[0])
    used_once(cache, tars[2])
    assert files(folder) == sorted(tar.name for tar in tars[1:3])
    assert len(os.pread(leases[1], SIZE, 0)) == SIZE
    os.close(leases[1])


def test_a_download_waits_for_a_lease_to_end(folder, tars):
    cache = cache_of(folder, SIZE)
    lease = cache.fetch(tars[0])
    timer = threading.Timer(0.1, os.close, [lease])
    timer.start()
    used_once(cache, tars[1])
    timer.join()
    assert files(folder) == [tars[1].name]


def test_foreign_files_survive_and_do_not_count(folder, tars):
    foreign = [
        folder / "thesis.tar",
        folder / "ab" / "precious.tar",
        folder / "ab" / ("cd" + "0" * 30 + ".tar"),  # our form, but another folder's
        folder / "ab" / ("ab" + "0" * 30 + ".tar.bak"),
        folder / "notes" / ("ab" + "0" * 30 + ".tar"),
    ]
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(5000))
        os.utime(path, (0, 0))
    cache = cache_of(folder, SIZE)
    for tar in tars:
        used_once(cache, tar)
    assert all(path.stat().st_size == 5000 for path in foreign)
    assert len(files(folder)) == len(foreign) + 1


def test_only_parts_of_our_making_that_died_days_ago_are_removed(folder):
    name = "ab" + "0" * 30 + ".tar"
    (folder / "ab").mkdir(parents=True)
    parts = [f"{name}.part-host-12-0123abcd", f"{name}.part-host-13-0123abcd", f"{name}.part-x"]
    for part in parts:
        (folder / "ab" / part).write_bytes(b"x")
    for part in (parts[0], parts[2]):
        os.utime(folder / "ab" / part, (time.time() - 90_000,) * 2)
    cache_of(folder)
    assert files(folder) == sorted(parts[1:])


def test_parts_count_in_the_budget(folder, tars, monkeypatch):
    monkeypatch.setattr(module, "ROOM_WAIT", 0.0)
    cache = cache_of(folder, 2 * SIZE - 1)
    path = folder / tars[0].name[:2] / tars[0].name
    path.parent.mkdir()
    part, lease = cache._reserve(tars[0], path)  # a download in hand
    assert files(folder) == [part.name]
    with pytest.raises(ShardError, match="no room"):
        cache.fetch(tars[1])
    os.close(lease)


def test_other_content_is_refused_and_leaves_nothing(folder, tars):
    fsspec.filesystem("memory").pipe("/cache/0.tar", bytes(SIZE))  # same size, other bytes
    with pytest.raises(ShardError, match=r"0.tar: is not the tar of the manifest \(SHA-256 541b"):
        cache_of(folder).fetch(tars[0])
    assert files(folder) == []


def test_a_missing_tar_is_named(folder):
    with pytest.raises(ShardError, match=r"memory://cache/none.tar: is missing; pack again"):
        cache_of(folder).fetch(Distant("memory://cache/none.tar", SIZE, "00"))
    assert files(folder) == []


def test_a_full_disk_is_named_and_leaves_nothing(folder, tars, monkeypatch):
    def full(url, size, write, patience):
        write(bytes(10))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "download", full)
    message = r"cache: cannot take the 1,000 bytes of memory.*0.tar \(No space left on device\); "
    with pytest.raises(ShardError, match=message):
        cache_of(folder).fetch(tars[0])
    assert files(folder) == []


def test_a_folder_that_turns_unwritable_is_named(folder, tars, monkeypatch):
    cache = cache_of(folder)

    def refused(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(module.os, "ftruncate", refused)
    with pytest.raises(ShardError, match=r"cannot take .* \(Read-only file system\); free some"):
        cache.fetch(tars[0])
    assert files(folder) == []


def before_the_lock(monkeypatch, action):
    """Another process acts between opening a file and locking it."""
    flock = module.fcntl.flock

    def late(file, kind):
        action()
        flock(file, kind)

    monkeypatch.setattr(module.fcntl, "flock", late)


def test_a_tar_that_is_evicted_before_it_is_leased_is_no_lease(tmp_path, monkeypatch):
    path = tmp_path / "x.tar"
    path.write_bytes(b"x")
    before_the_lock(monkeypatch, path.unlink)
    assert take_lease(path) is None


def test_another_tar_of_the_same_name_is_not_evicted(tmp_path, monkeypatch):
    path, other = tmp_path / "x.tar", tmp_path / "y.tar"
    path.write_bytes(b"x")
    other.write_bytes(b"yy")
    before_the_lock(monkeypatch, lambda: other.replace(path))
    assert not evict(path)
    assert path.read_bytes() == b"yy"


def test_no_folder_can_be_made(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(
        ShardError, match=r"cache: cannot be a cache \(Not a directory\); set run.cache to"
    ):
        cache_of(tmp_path / "file" / "cache")


def test_without_a_budget_most_of_the_free_disk(folder, monkeypatch):
    usage = module.shutil.disk_usage(".")._replace(free=10_000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    assert NodeCache(folder, budget=None, patience=QUICK).budget == 9000


def test_a_lock_excludes_though_its_file_comes_and_goes(tmp_path):
    inside, most = [], []

    def enter():
        for _ in range(50):
            with locked(tmp_path / "lock"):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    assert len(most) == 200
    assert not (tmp_path / "lock").exists()
