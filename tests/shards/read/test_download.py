"""Requests that fail: tried again, gone on with, or given up with a clear message."""

import hashlib
import random

import fsspec
import numpy as np
import pytest
import torch

from sslpipe.errors import ExtraError, ShardError
from sslpipe.shards.read import download as module
from sslpipe.shards.read import file_systems
from sslpipe.shards.read.download import Patience, download, read_range, read_whole
from sslpipe.shards.read.file_systems import find_store
from tests.servers import serve

QUICK = Patience(attempts=3, first=0.001, longest=0.002)


@pytest.fixture
def content():
    return np.random.default_rng(0).bytes(10_000)


@pytest.fixture
def server(tmp_path, content, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 4096)
    (tmp_path / "x.tar").write_bytes(content)
    with serve(tmp_path) as server:
        yield server


def fetched(server):
    blocks = []
    digest = download(f"{server.url}/x.tar", 10_000, blocks.append, QUICK)
    data = b"".join(blocks)
    assert digest == hashlib.sha256(data).hexdigest()
    return data


def test_a_download_asks_for_every_byte_once(server, content):
    assert fetched(server) == content
    assert [r[1:] for r in server.ranges] == [(0, 4096), (4096, 8192), (8192, 10_000)]


@pytest.mark.parametrize("fault", ["drop", "500"])
def test_a_failed_request_is_tried_again_from_the_bytes_that_are_there(server, content, fault):
    server.faults.extend(["", fault, fault, "", fault, fault])  # never three in a row
    assert fetched(server) == content
    starts = [start for _, start, _ in server.ranges]
    expected = [0, 4096, 8192] if fault == "500" else [0, 4096, 4096, 4096, 8192, 8192, 8192]
    assert starts == expected


def test_a_short_answer_is_gone_on_with(server, content):
    server.faults.extend(["short", "short"])
    assert fetched(server) == content
    assert [r[1:] for r in server.ranges][:3] == [(0, 4096), (2048, 6144), (4096, 8192)]


def test_a_server_without_ranges_sends_the_whole(server, content):
    server.faults.extend(["whole", "whole"])
    assert fetched(server) == content


def test_the_budget_of_failures_ends_and_the_message_says_all(server):
    server.faults.extend(["500"] * 9)
    message = rf"{server.url}/x.tar: cannot be read: 3 attempts, the last: ClientResponse.*500"
    with pytest.raises(ShardError, match=message):
        fetched(server)
    assert len(server.faults) == 6


def test_what_cannot_mend_itself_is_not_tried_again(server):
    server.faults.extend(["404", "403", "500"])
    with pytest.raises(FileNotFoundError):
        fetched(server)
    with pytest.raises(ShardError, match="1 attempts, the last: ClientResponseError: 403"):
        fetched(server)
    assert list(server.faults) == ["500"]


def test_a_file_that_ends_early_spends_the_budget(server):
    with pytest.raises(ShardError, match=r"x.tar: cannot be read: .* attempts"):
        download(f"{server.url}/x.tar", 12_000, lambda block: None, QUICK)


def test_a_server_that_is_silent_is_left_after_a_while(server, content, monkeypatch):
    monkeypatch.setattr(file_systems, "TIMEOUT", 0.3)
    server.faults.extend(["slow"])  # a second
    assert fetched(server) == content
    assert [r[1:] for r in server.ranges][:2] == [(0, 4096), (0, 4096)]


def test_waits_double_up_to_a_limit_and_leave_the_global_generators_alone(monkeypatch):
    waits = []
    monkeypatch.setattr(module.time, "sleep", waits.append)
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    for failures in range(1, 9):
        Patience().wait(failures)
    assert states[0] == random.getstate()
    assert (states[1] == np.random.get_state()[1]).all()
    assert torch.equal(states[2], torch.get_rng_state())
    limits = [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert all(limit / 2 <= wait <= limit for wait, limit in zip(waits, limits, strict=True))
    assert len(set(waits)) == 8


def test_any_protocol_of_fsspec_and_local_files(tmp_path):
    (tmp_path / "file").write_bytes(b"here")
    assert read_whole(tmp_path / "file", QUICK) == b"here"
    assert read_whole(f"file://{tmp_path}/file", QUICK) == b"here"
    fsspec.filesystem("memory").pipe("/download/file", b"0123456789")
    assert read_whole("memory://download/file", QUICK) == b"0123456789"
    assert read_range("memory://download/file", 3, 6, QUICK) == b"345"
    with pytest.raises(FileNotFoundError):
        read_range("memory://download/other", 3, 6, QUICK)


def test_unknown_protocols_and_missing_packages_are_named(monkeypatch):
    with pytest.raises(ShardError, match="nonsense://x/y: Protocol not known: nonsense"):
        find_store("nonsense://x/y")

    def missing(*_, **__):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(ExtraError, match=r'pip install "sslpipe\[s3\]"'):
        find_store("s3://bucket/x")
