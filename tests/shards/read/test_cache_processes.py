"""The node cache between processes: they race on a tar, and one is killed in a download."""

import hashlib
import os
import re
import subprocess
import sys
import time

import numpy as np

from sslpipe.shards.read.cache import Distant, NodeCache
from sslpipe.shards.read.download import Patience
from tests.conftest import ROOT
from tests.servers import serve

SIZE = 1000


PROGRAM = """
import os, sys
from pathlib import Path
from sslpipe.shards.read.cache import Distant, NodeCache
from sslpipe.shards.read.download import Patience
url, size, sha256, folder, budget = sys.argv[1:]
cache = NodeCache(Path(folder), budget=int(budget), patience=Patience())
print("ready", flush=True)
sys.stdin.readline()
lease = cache.fetch(Distant(url, int(size), sha256))
print(len(os.pread(lease, int(size), 0)))
"""


def start(words):
    """A process that fetches a tar when it is told to go."""
    command = [sys.executable, "-c", PROGRAM, *words]
    return subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def go(process):
    """Let it fetch now."""
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("go\n")
    process.stdin.flush()


def cache_of(folder, budget):
    return NodeCache(folder, budget=budget, patience=Patience())


def files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_killed_download_gives_its_room_and_its_locks_back(tmp_path):
    folder = tmp_path / "cache"
    for name in "xy":
        (tmp_path / f"{name}.tar").write_bytes(bytes(SIZE))
    digest = hashlib.sha256(bytes(SIZE)).hexdigest()
    with serve(tmp_path) as server:
        server.faults.append("slow")
        tar = Distant(f"{server.url}/x.tar", SIZE, digest)
        with start([tar.url, str(SIZE), digest, str(folder), str(SIZE)]) as process:
            go(process)
            while not server.ranges:
                time.sleep(0.01)
            process.kill()
        assert [".part-" in name for name in files(folder) if ".tar" in name] == [True]
        for again in (Distant(f"{server.url}/y.tar", SIZE, digest), tar):
            os.close(cache_of(folder, SIZE).fetch(again))
    assert files(folder) == [tar.name]


def test_processes_that_race_download_once(tmp_path):
    folder = tmp_path / "cache"
    content = np.random.default_rng(0).bytes(50_000)
    (tmp_path / "x.tar").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    with serve(tmp_path) as server:
        server.faults.append("slow")
        words = [f"{server.url}/x.tar", "50000", digest, str(folder), "100000"]
        with start(words) as other:
            go(other)
            mine = cache_of(folder, 100_000).fetch(Distant(words[0], 50_000, digest))
            assert other.communicate()[0].strip() == "50000"
        assert os.pread(mine, 50_000, 0) == content
        os.close(mine)
        assert len(server.ranges) == 1
    assert [re.sub(r"\w+\.", "x.", name) for name in files(folder)] == ["x.tar"]
