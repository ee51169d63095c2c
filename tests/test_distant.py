"""Shards on servers: the batches are those of local shards, whatever the cache."""

import shutil

import pytest
import s3fs
import torch
from moto.server import ThreadedMotoServer

import sslpipe
from sslpipe.errors import ShardError
from sslpipe.recipe import parse_recipe
from sslpipe.shards import open_manifest

from .conftest import RECIPE
from .servers import reset_moto, serve


def batches(shards, *overrides, **world):
    recipe = parse_recipe(RECIPE, path="test.yaml", overrides=overrides)
    with sslpipe.load(recipe, shards=shards, device="cpu", **world) as pipe:
        return list(pipe) if "stream.order=sequential" in overrides else [*pipe, *pipe]


def same(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys == other.keys
        assert torch.equal(one.views["global"], other.views["global"])


@pytest.fixture(scope="module")
def truth(packed):
    return batches(packed)


@pytest.fixture
def server(packed):
    with serve(packed) as server:
        yield server


def test_http_with_a_cache_of_any_size_and_without(server, packed, tmp_path, truth):
    same(batches(server.url), truth)
    server.ranges.clear()
    same(batches(server.url, f"run.cache={tmp_path}/c"), truth)
    assert len({path for path, *_ in server.ranges}) == len(server.ranges)  # each tar once
    tight = sum(shard.bytes for shard in open_manifest(packed).shards) / 1e9
    same(batches(server.url, f"run.cache={tmp_path}/t", f"run.cache_gb={tight}"), truth)


def test_a_cache_that_cannot_hold_what_is_needed_at_a_time_is_refused(server, tmp_path):
    with pytest.raises(ShardError, match=r"run.cache_gb: \d+ shards of .* bytes are needed at"):
        batches(server.url, f"run.cache={tmp_path}/c", "run.cache_gb=0.00003")


def test_sequential_order_needs_room_for_few_shards(server, packed, tmp_path):
    words = ["stream.order=sequential", f"run.cache={tmp_path}/c", "run.cache_gb=0.00007"]
    same(batches(server.url, *words), batches(packed, "stream.order=sequential"))
    left = sum(path.stat().st_size for path in (tmp_path / "c").rglob("*.tar"))
    assert left <= 70_000  # of 160,000


def test_ranks_share_a_cache(server, tmp_path, truth):
    recipe = parse_recipe(RECIPE, path="test.yaml", overrides=[f"run.cache={tmp_path}/c"])
    pipes = [
        sslpipe.load(recipe, shards=server.url, device="cpu", rank=rank, world_size=2)
        for rank in range(2)
    ]
    for parts in zip(*pipes, strict=True):
        keys = set(parts[0].keys) | set(parts[1].keys)
        assert keys == set(truth[parts[0].step].keys)
    for pipe in pipes:
        pipe.close()
    assert len({path for path, *_ in server.ranges}) == len(server.ranges)


def test_a_shard_that_vanishes_from_the_server_while_the_run_goes_on(packed, tmp_path):
    folder = shutil.copytree(packed, tmp_path / "packed")
    with serve(folder) as server:
        recipe = parse_recipe(RECIPE, path="test.yaml")
        with sslpipe.load(recipe, shards=server.url, device="cpu") as pipe:
            batch = next(iter(pipe))
            assert len(batch.keys) == 8
            for tar in folder.glob("*.tar"):
                tar.unlink()
            with pytest.raises(ShardError, match=rf"{server.url}/.*tar: is missing"):
                list(pipe)


@pytest.fixture
def bucket(packed, monkeypatch):
    """`s3://photos/set` on a server on loopback."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    reset_moto(host, port)
    store = s3fs.S3FileSystem()
    store.mkdir("photos")
    store.put(f"{packed}/", "photos/set/", recursive=True)
    yield "s3://photos/set"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_s3_with_a_cache_and_without(bucket, tmp_path, truth):
    same(batches(bucket), truth)
    same(batches(bucket, f"run.cache={tmp_path}/c"), truth)
    with pytest.raises(ShardError, match=r"s3://photos/none/manifest.json: no manifest; make one"):
        batches("s3://photos/none")
