"""Features by a pool: the bytes of one process, whoever makes a part, and when workers are lost."""

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from sslpipe.errors import ShardError, SslpipeError, StateError
from sslpipe.evaluate import feature_parts, feature_pool
from sslpipe.evaluate.feature_cache import features_at
from sslpipe.evaluate.feature_parts import ExtractSettings
from sslpipe.evaluate.feature_pool import features_in_pool
from sslpipe.evaluate.subjects import open_subject
from sslpipe.shards.make import pools
from tests.conftest import ROOT
from tests.evaluate.test_subjects import trained

SETTINGS = ExtractSettings(batch_size=8, pixels=True, device="cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory, packed):
    folder = tmp_path_factory.mktemp("run")
    trained(folder, packed, "simclr")
    return folder


@pytest.fixture
def whole(tmp_path, run, packed, monkeypatch):
    """The bytes of one process; from here on there are three parts of 45 samples."""
    features_at(tmp_path / "whole.safetensors", open_subject(run), packed, SETTINGS)
    monkeypatch.setattr(feature_parts, "PART", 16)
    yield (tmp_path / "whole.safetensors").read_bytes()
    feature_pool.opened.cache_clear()


class Backwards:
    """Does its jobs in the wrong order, up to one that a worker is lost with."""

    def __init__(self, lost=None):
        self.lost, self.done = lost, []

    def imap_unordered(self, func, iterable, chunksize):
        for job in reversed(iterable):
            if job.number == self.lost:
                raise ConnectionError("actor died")
            self.done.append(job.number)
            yield func(job)


def test_the_bytes_of_one_process_and_no_part_twice(tmp_path, run, packed, whole):
    path, heard = tmp_path / "pool.safetensors", []
    lossy, sound = Backwards(lost=1), Backwards()
    with pytest.raises(SslpipeError, match=r"a worker was lost \(actor died\).*same command again"):
        features_in_pool(path, str(run), packed, SETTINGS, lossy)
    assert not path.exists()
    features_in_pool(
        path, str(run), packed, SETTINGS, sound, progress=lambda *told: heard.append(told)
    )
    assert (lossy.done, sound.done) == ([2], [1, 0])
    assert heard == [(16, 32), (32, 32)]
    assert path.read_bytes() == whole
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pool.safetensors", "whole.safetensors"]
    assert features_in_pool(path, str(run), packed, SETTINGS, None)["trained"].uids.numel() == 45


def test_a_worker_with_other_files_is_told(tmp_path, run, packed, whole, monkeypatch):
    """As where a machine has another version of the weights under the same name."""
    seen = feature_pool.open_subject
    subjects = iter([seen(run), replace(seen(run), digest="b2:other")])
    monkeypatch.setattr(feature_pool, "open_subject", lambda *_: next(subjects))
    with pytest.raises(StateError, match=r"a worker finds other weights, .*b2:other"):
        features_in_pool(tmp_path / "a.safetensors", str(run), packed, SETTINGS, Backwards())


RAY = """
import os, signal, sys
from functools import partial
from pathlib import Path
import ray
from sslpipe.evaluate import feature_parts, feature_pool
from sslpipe.shards import open_pool

def fatal_once(func, folder, job):
    if job.number == 1:
        try:
            (folder / "killed").touch(exist_ok=False)
        except FileExistsError:
            pass
        else:
            os.kill(os.getpid(), signal.SIGKILL)
    return func(job)

class Fatal:
    def imap_unordered(self, func, jobs, chunksize):
        return pool.imap_unordered(partial(fatal_once, func, out.parent), jobs, chunksize)

run, packed, out = map(Path, sys.argv[1:])
feature_parts.PART = 16  # in this process; what workers make follows from their jobs
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
settings = feature_parts.ExtractSettings(batch_size=8, pixels=True, device="cpu")
with open_pool(2, "auto") as pool:
    feature_pool.features_in_pool(out, str(run), packed, settings, Fatal())
"""


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="ray is not installed")
def test_two_actors_of_which_one_is_killed(tmp_path, run, packed, whole):
    path = tmp_path / "ray" / "f.safetensors"
    path.parent.mkdir()
    words = [sys.executable, "-c", RAY, os.path.relpath(run), os.path.relpath(packed), path]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    assert (path.parent / "killed").exists()
    assert path.read_bytes() == whole


def test_more_actors_than_gpus(monkeypatch):
    monkeypatch.setattr(pools, "cluster_gpus", lambda address, workers: 2)
    with pytest.raises(ShardError, match="3 actors need a GPU each, and the cluster has 2; take"):
        pools.open_ray(3, "auto", gpus=1)
