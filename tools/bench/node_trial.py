"""Nodes that walk one stream together: processes that read from a store far away, and may die."""

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import fsspec
import numpy as np
import yaml

from sslpipe.recipe import Recipe, parse_recipe
from sslpipe.shards import open_manifest
from sslpipe.stream.samples import SampleStream
from sslpipe.stream.shard_lookahead import AHEAD as LOOKED_AHEAD

sys.path.insert(0, str(Path(__file__).parent))
from scale_run import shards_of_node

Row = dict[str, Any]
Records = dict[int, list[int]]  # step -> uids, in the order of a node's slots
LATENCY, BANDWIDTH, FAILING = 0.005, 20e6, 0.02  # seconds, bytes/s, of all requests
SHARD = 11  # samples of one: no multiple of a lane
SLOWER = 4


class SleepingStore(fsspec.AbstractFileSystem):
    """Files of this machine, as if they lay far away, of a store that fails now and then."""

    protocol = "sleeping"
    tars: ClassVar[list[str]] = []  # that this process has downloaded

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        time.sleep(LATENCY)
        if random.random() < FAILING:
            raise ConnectionError("the store is busy")
        content = Path(path).read_bytes()[start:end]
        time.sleep(len(content) / BANDWIDTH)
        if path.endswith(".tar"):
            SleepingStore.tars.append(path.rpartition("/")[2])
        return content


@dataclass(frozen=True)
class Trial:
    """What nodes run, and how."""

    url: str
    folder: Path  # of logs and caches
    nodes: int
    steps: int
    batch: int
    ms: float  # of decoding a sample
    order: str = "lanes"
    tar: float = 0.0  # bytes of one, on average
    state: Mapping[str, Any] | None = None
    deaths: Mapping[int, int] = field(default_factory=dict)  # node -> step in which it dies
    slow: int = -1  # a node that is SLOWER times as slow

    def recipe(self, node: int) -> Recipe:
        """With a cache of the node's own, and lanes that divide among all numbers of nodes.

        Half of a cache is for what comes: here as much as a node needs in an epoch.
        """
        stream = {
            "batch_size": self.batch, "order": self.order, "seed": 1, "window": 2,
            "lanes": self.batch, "remainder": "wrap",
        }  # fmt: skip
        samples = self.batch * self.steps
        needed = shards_of_node(self.order, samples, SHARD, self.nodes, self.batch)
        room = 1.2 * needed * self.tar / LOOKED_AHEAD / 1e9
        run = {"cache": str(self.folder / f"cache{node}"), "cache_gb": room}
        sections = {"modality": "text", "stream": stream, "views": {}, "run": run}
        return parse_recipe(yaml.safe_dump(sections), path="nodes")


def run(trial: Trial) -> tuple[list[int], Records, list[float]]:
    """Run the nodes until all are done or some have died.

    Returns:
        Shards that each node downloaded, the uids of each step that all nodes have ended, in the
        order of the global batch, and when the steps ended.
    """
    context = multiprocessing.get_context("fork")  # seconds of imports are not repeated
    barrier = context.Barrier(trial.nodes)
    nodes = [context.Process(target=live, args=(trial, n, barrier)) for n in range(trial.nodes)]
    for node in nodes:
        node.start()
    while any(node.is_alive() for node in nodes):
        if trial.deaths and not nodes[min(trial.deaths)].is_alive():
            time.sleep(1)  # others die, or wait for the dead
            for node in nodes:
                node.kill()
        time.sleep(0.05)
    codes = {node.exitcode for node in nodes}
    assert codes <= ({0, -signal.SIGKILL} if trial.deaths else {0}), codes
    return gathered(trial)


def live(trial: Trial, node: int, barrier: Barrier) -> None:
    """One node: read, decode, wait for all others, and write down what it had."""
    random.seed(node)
    slow = SLOWER if node == trial.slow else 1
    log, needed = trial.folder / f"{node}.jsonl", set[str]()
    manifest = open_manifest(trial.url)
    with (
        SampleStream(
            trial.recipe(node), manifest, rank=node, world_size=trial.nodes, prefetch=2
        ) as stream,
        log.open("w") as file,
    ):
        if trial.state:
            stream.load_state_dict(dict(trial.state))
        for batch in stream:
            step = stream.step - 1
            if trial.deaths.get(node) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(slow * trial.ms / 1e3 * len(batch))  # the decoder
            barrier.wait()
            needed |= {manifest.shards[n].file for n in stream.source.wants(step).shards.tolist()}
            line = {
                "step": step, "uids": [s.uid for s in batch],
                "slots": stream.source.slots_at(step).tolist(),
                "state": stream.state_dict(), "time": time.time(),
                # not those that were fetched ahead, of the next epoch
                "shards": sum(tar in needed for tar in SleepingStore.tars),
            }  # fmt: skip
            file.write(json.dumps(line) + "\n")
            file.flush()


def gathered(trial: Trial) -> tuple[list[int], Records, list[float]]:
    """What all nodes wrote, as far as all of them came."""
    logs = [lines_of(trial.folder / f"{node}.jsonl") for node in range(trial.nodes)]
    common = min(map(len, logs))
    found: Records = {}
    for lines in zip(*(log[:common] for log in logs), strict=True):
        whole = dict(
            pair for line in lines for pair in zip(line["slots"], line["uids"], strict=True)
        )
        found[lines[0]["step"]] = [whole[slot] for slot in range(trial.batch)]
    ends = [max(line["time"] for line in lines) for lines in zip(*logs, strict=False)]
    return [log[-1]["shards"] if log else 0 for log in logs], found, ends


def lines_of(log: Path) -> list[Row]:
    """The whole lines of a log."""
    text = log.read_text() if log.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def step_seconds(ends: list[float]) -> float:
    """The median step, without the first, which waits for the first downloads."""
    return round(median(np.diff(ends[1:]).tolist()), 3)
