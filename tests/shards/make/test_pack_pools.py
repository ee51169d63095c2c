"""The same bytes from any pool, and what happens when a worker is lost."""

import importlib.util
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pytest

from sslpipe.errors import ExtraError, ShardError
from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.shards import PackSettings, Processes, open_pool, open_threads, pack

SETTINGS = {"name": "p", "shard_samples": 4, "dedupe": "near", "resize": 20, "keep_names": True}


def content(folder):
    """Relative path -> bytes of every file."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def mixed(folder, picture):
    """The good images, a broken one and a repeated one."""
    (folder / "broken.jpg").write_bytes(b"no")
    (folder / "again.jpg").write_bytes(picture(0))
    return folder


@pytest.fixture
def clean(mixed, tmp_path, codec):
    pack(mixed, tmp_path / "clean", PackSettings(codec=codec, **SETTINGS))
    return content(tmp_path / "clean")


class Backwards:
    """A pool that ends its jobs in the wrong order."""

    def imap_unordered(self, func, iterable, chunksize):
        return iter([func(item) for item in reversed(list(iterable))])


def test_threads_however_many_and_any_order(mixed, tmp_path, codec, clean):
    for workers in (1, 2, 5):
        with open_threads(workers) as pool:
            pack(mixed, tmp_path / str(workers), PackSettings(codec=codec, **SETTINGS), pool=pool)
        assert content(tmp_path / str(workers)) == clean
    pack(mixed, tmp_path / "back", PackSettings(codec=codec, **SETTINGS), pool=Backwards())
    assert content(tmp_path / "back") == clean


def test_processes(mixed, tmp_path, codec, clean):
    with open_pool(2, None) as pool:
        pack(mixed, tmp_path / "ours", PackSettings(codec=codec, **SETTINGS), pool=pool)
    assert content(tmp_path / "ours") == clean


def test_pools_of_the_standard_library(mixed, tmp_path, codec, clean):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pack(mixed, tmp_path / "theirs", PackSettings(codec=codec, **SETTINGS), pool=pool)
    with ThreadPool(2) as pool:
        pack(mixed, tmp_path / "threads", PackSettings(codec=codec, **SETTINGS), pool=pool)
    assert content(tmp_path / "theirs") == content(tmp_path / "threads") == clean


RAY = """
import os, sys
import ray
from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.shards import PackSettings, open_pool, pack

ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
os.chdir(sys.argv[3])  # as where a cluster was started in another folder
with open_pool(1, "auto") as pool:  # each actor imports torch
    settings = PackSettings(codec=ImageCodec(), name="p", shard_samples=4,
                            dedupe="near", resize=20, keep_names=True)
    pack(sys.argv[1], sys.argv[2], settings, pool=pool)
"""


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="ray is not installed")
def test_a_real_ray_cluster(mixed, tmp_path, clean):
    inputs = os.path.relpath(mixed, tmp_path)
    words = [sys.executable, "-c", RAY, inputs, "ray", tmp_path]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "ray") == clean


def test_ray_that_is_missing_or_away(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray.util.multiprocessing", None)
    with pytest.raises(ExtraError, match=r"pip install sslpipe\[ray\]"):
        open_pool(None, "auto")
    with pytest.raises(ShardError, match="workers = 0: must be 1 or more"):
        open_pool(0, None)


class Deadly(ImageCodec):
    """A picture at which the worker is killed, as for want of memory."""

    def inspect(self, data):
        if data == b"deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().inspect(data)


class Faulty(ImageCodec):
    """A codec with a bug."""

    def inspect(self, data):
        raise KeyError("width")


def test_a_killed_worker_names_the_shard_and_the_run_can_go_on(folder, tmp_path, codec):
    (folder / "deadly.jpg").write_bytes(b"deadly")
    same = {"name": "p", "shard_samples": 20}
    match = "a worker was lost .* with p-00000[01] unfinished; .* run the same command again"
    with pytest.raises(ShardError, match=match), Processes(1) as pool:
        pack(folder, tmp_path / "out", PackSettings(codec=Deadly(), **same), pool=pool)
    report = pack(folder, tmp_path / "out", PackSettings(codec=codec, **same))
    assert report.manifest.samples == 20
    assert [note.file for note in report.failures] == ["deadly.jpg"]


def test_a_lost_actor_comes_back_as_a_value(folder, tmp_path, codec):
    class Ray:
        def imap_unordered(self, func, iterable, chunksize):
            return iter([ConnectionError("actor died")])

    with pytest.raises(ShardError, match=r"a worker was lost \(actor died\), with no shard"):
        pack(folder, tmp_path / "out", PackSettings(codec=codec, shard_samples=10), pool=Ray())


def test_a_bug_in_a_worker_names_the_shard(folder, tmp_path):
    with pytest.raises(ShardError, match=r"photos-00000\d.tar: KeyError: 'width'"):
        pack(folder, tmp_path / "out", PackSettings(codec=Faulty(), shard_samples=8))


ORPHANS = """
import sys, time
from sslpipe.shards import Processes

def main():
    with Processes(1) as pool:
        for pid in pool.imap_unordered(work.pid, [0]):
            print(pid, flush=True)
        time.sleep(60)

if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    import work
    main()
"""


def test_workers_end_with_their_parent(tmp_path):
    (tmp_path / "work.py").write_text("import os\ndef pid(item): return os.getpid()\n")
    (tmp_path / "main.py").write_text(ORPHANS)
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    words = [sys.executable, tmp_path / "main.py", tmp_path]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=env) as parent:
        worker = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 60
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(worker)


def alive(pid):
    try:
        with Path(f"/proc/{pid}/stat").open() as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
