"""Nodes as processes keep one stream, and the arithmetic of pipelines/SCALE.md is that of it."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from sslpipe.shards.read.download import BLOCK, Patience
from sslpipe.stream import order
from tests.conftest import ROOT, load_tool


@pytest.fixture(scope="module")
def rows():
    """What 8 nodes, of which one is lost, come to."""
    words = ["--nodes", "8", "--lost", "1", "--steps", "6", "--ms", "0", "--skip-uneven"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    done = subprocess.run(
        [sys.executable, ROOT / "tools/bench/nodes.py", *words],
        capture_output=True, text=True, check=False, env=env,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_nodes_keep_one_stream(rows):
    found = {row["case"]: row for row in rows}
    assert found["epoch"]["samples"] == 336
    assert (found["lost"]["resumed_on"], found["lost"]["at_step"]) == (7, 3)
    assert found["lost"]["steps_that_differ"] == 0
    assert all(not row.get("wrong") for row in rows)
    np.testing.assert_allclose(found["mixture"]["shares"], [0.6, 0.3, 0.1], atol=1 / 336)


@pytest.mark.slow
def test_nodes_download_what_the_arithmetic_says(rows):
    downloads = {row["order"]: row for row in rows if row["case"] == "downloads"}
    assert downloads.keys() == {"lanes", "global", "sequential"}
    for row in downloads.values():
        assert row["shards_a_node"] == pytest.approx(row["predicted"], rel=0.1)


def test_the_tables_of_the_page_follow_from_the_constants():
    page = load_tool("scale_page")
    text = page.PAGE.read_text()
    assert text == page.written(text), "run tools/bench/scale_page.py --write"
    assert text.count("<!-- table: ") == len(page.TABLES)


def test_the_numbers_in_the_words_of_the_page():
    text = " ".join(load_tool("scale_page").PAGE.read_text().split())
    run, nodes = load_tool("scale_run").RUN, load_tool("node_trial")
    assert 14_336 % run.ranks == 14_336 % (56 * run.ranks_a_node) == 0
    said = (
        (
            f"{run.nodes} nodes of {run.ranks_a_node} GPUs, a batch of {run.batch:,}, shards of "
            f"{run.shard:,} images (1 GB), {run.gbit:.0f} Gbit/s a node"
        ),
        f"14,336 holds {run.ranks} and {56 * run.ranks_a_node} of them (64 and 56 nodes)",
        f"blocks of {BLOCK >> 20} MiB; a request that fails is tried {Patience().attempts} times",
        f"latency of {1e3 * nodes.LATENCY:.0f} ms of which {100 * nodes.FAILING:.0f} % of all",
        f"{24 * 448:,} samples in {-(-24 * 448 // nodes.SHARD)} shards",
    )
    assert run.shard_bytes == 10**9
    for words in said:
        assert words in text, words


@pytest.mark.parametrize(("nodes", "lanes"), [(16, 128), (16, 32), (14, 32), (14, 224)])
def test_lanes_of_nodes_are_those_of_a_stream(nodes, lanes):
    """In a small world of the same shape, the shards that the busiest node touches in an epoch."""
    numbers = load_tool("scale_run")
    run = replace(
        numbers.RUN, samples=224 * 1000, shard=100, nodes=nodes, batch=14 * 128, lanes=lanes
    )
    sizes = np.full(run.shards, run.shard)
    made = order.build_order(sizes, kind="lanes", seed=0, lanes=lanes, window=2)
    touched = []
    for node in range(nodes):
        mine = np.concatenate([
            order.slots(batch_size=run.batch, lanes=lanes, rank=rank, world_size=run.ranks)
            for rank in range(node * 8, node * 8 + 8)
        ])  # fmt: skip
        steps = np.arange(run.samples // run.batch)[:, None] * run.batch
        touched.append(len(np.unique(made.locate((steps + mine).ravel()).shards)))
    assert max(touched) == pytest.approx(numbers.in_lanes(run, lanes), rel=0.03)


@pytest.mark.parametrize("lanes", [64, 256])
def test_shards_of_a_mixture_are_those_of_a_stream(lanes):
    numbers = load_tool("scale_run")
    run = replace(numbers.RUN, samples=2 * 10**6, shard=1000, nodes=8, batch=4096)
    orders = [
        order.build_order(
            np.full(run.shards * part // 10, run.shard), kind="lanes", seed=part, lanes=lanes,
            window=2,
        )
        for part in numbers.MIXED
    ]  # fmt: skip
    touched = []
    for node in (0, 7):
        needed = set()
        for rank in range(node * 8, node * 8 + 8):
            picks = numbers.split_of(run, rank, lanes).picks(range(run.samples // run.batch))
            for corpus, made in enumerate(orders):
                found = made.locate(picks.positions[picks.corpora == corpus])
                needed.update((corpus, shard) for shard in np.unique(found.shards).tolist())
        touched.append(len(needed))
    said = numbers.in_mixture(run, lanes)  # of shared lanes all: too many, by up to a fifth
    assert 0.8 * said < max(touched) < 1.05 * said
