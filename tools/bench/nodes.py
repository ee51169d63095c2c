"""64 nodes as processes: does an epoch hold, through deaths, resumption and uneven speed?

    python tools/bench/nodes.py [--nodes 64] [--lost 8] [--steps 24] [--ms 20] [--skip-uneven]

A node is a process with a cache of its own, a store that sleeps (latency, bandwidth, 2 % of all
requests fail) and a decoder that sleeps `ms` a sample; a barrier stands for the gradients' sum.
One JSON line per row; the exit code is 1 if anything is not as it should be:

epoch      the samples of all nodes in one epoch: each of the set once?
lost       some nodes are killed inside a step, the others go on from the state: anything lost, or
           twice, in the epoch? And are the batches those of the undisturbed run?
uneven     seconds of a global step where all nodes are alike, and where one is 4 times as slow
downloads  shards that a node downloads in an epoch, for each order, beside what scale_run.py says
mixture    three sets by weight: the counts over all nodes, at every step; shards that a node needs
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import fsspec
import numpy as np
import yaml

from sslpipe.modalities.text.codec import TextCodec
from sslpipe.recipe import Recipe, parse_recipe
from sslpipe.shards import PackSettings, open_manifest, pack
from sslpipe.stream.open_source import ReadingRank, open_source
from sslpipe.stream.packed import Packed
from sslpipe.stream.samples import SampleStream
from sslpipe.stream.shard_lookahead import AHEAD as LOOKED_AHEAD

sys.path.insert(0, str(Path(__file__).parent))
from scale_run import shards_of_node

Row = dict[str, Any]
Records = dict[int, list[int]]  # step -> uids, in the order of a node's slots
LATENCY, BANDWIDTH, FAILING = 0.005, 20e6, 0.02  # seconds, bytes/s, of all requests
SHARD = 11  # samples of one: no multiple of a lane
SLOWER = 4
WEIGHTS = {"a": 0.6, "b": 0.3, "c": 0.1}


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


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--nodes", type=int, default=64)
    options.add_argument("--lost", type=int, default=8)
    options.add_argument("--steps", type=int, default=24, help="of an epoch")
    options.add_argument("--ms", type=float, default=20, help="of decoding a sample")
    options.add_argument("--skip-uneven", action="store_true", help="what only a clock tells")
    chosen = options.parse_args()
    left = chosen.nodes - chosen.lost
    batch = int(np.lcm(chosen.nodes, left))  # both numbers of nodes divide it
    fsspec.register_implementation("sleeping", SleepingStore)
    with tempfile.TemporaryDirectory() as name:
        url = packed(Path(name), batch * chosen.steps)
        tar = float(np.mean([shard.bytes for shard in open_manifest(url).shards]))
        trial = Trial(url, Path(name), chosen.nodes, chosen.steps, batch, chosen.ms, tar=tar)
        wrong = False
        for row in rows(trial, left, uneven=not chosen.skip_uneven):
            print(json.dumps(row), flush=True)
            wrong |= bool(row.get("wrong"))
    raise SystemExit(wrong)


def rows(trial: Trial, left: int, *, uneven: bool) -> Iterator[Row]:
    """All that is shown, the cheapest first."""
    yield mixture(trial)
    alike, whole, ends = run(moved(trial, "alike"))
    yield epoch(trial, whole)
    yield downloads(trial, "lanes", alike)
    yield lost(trial, left, whole)
    if uneven:
        _, _, slow_ends = run(moved(trial, "slow", slow=1))
        yield {
            "case": "uneven", "nodes": trial.nodes, "one_slower_by": SLOWER,
            "step_s_alike": step_seconds(ends), "step_s_uneven": step_seconds(slow_ends),
            "decoding_alone_s": trial.batch / trial.nodes * trial.ms / 1e3,
        }  # fmt: skip
    for order in ("global", "sequential"):
        shards, uids, _ = run(moved(trial, order, order=order, ms=0.0))
        yield {**downloads(trial, order, shards), "wrong": epoch(trial, uids)["wrong"]}


def packed(folder: Path, samples: int) -> str:
    """Documents of some hundred bytes, in shards of SHARD samples, elsewhere."""
    lines = (json.dumps({"text": f"{n:06d} " + "word " * (n % 90 + 20)}) for n in range(samples))
    (folder / "texts.jsonl").write_text("\n".join(lines))
    settings = PackSettings(codec=TextCodec(), shard_samples=SHARD)
    pack(folder / "texts.jsonl", folder / "shards", settings)
    return f"sleeping://{folder / 'shards'}"


def moved(trial: Trial, name: str, **changes: Any) -> Trial:
    """The trial with a folder of its own and some changes."""
    folder = trial.folder / name
    folder.mkdir()
    return Trial(**{**vars(trial), "folder": folder, **changes})


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


def epoch(trial: Trial, found: Records) -> Row:
    """Whether the steps of an epoch hold each sample once."""
    uids = Counter(uid for step in found.values() for uid in step)
    samples = trial.batch * trial.steps
    wrong = samples - len(uids) + sum(count > 1 for count in uids.values())
    return {"case": "epoch", "nodes": trial.nodes, "samples": samples, "wrong": wrong}


def lost(trial: Trial, left: int, whole: Records) -> Row:
    """Kill nodes in the middle of an epoch, go on with the others from the state."""
    chance = random.Random(0)
    victims = chance.sample(range(trial.nodes), trial.nodes - left)
    middle = trial.steps // 2
    first = moved(trial, "killed", deaths=dict.fromkeys(victims, middle))
    _, before, _ = run(first)
    alive = next(n for n in range(trial.nodes) if n not in victims)
    line = lines_of(first.folder / f"{alive}.jsonl")[len(before) - 1]
    _, after, _ = run(moved(trial, "resumed", nodes=left, state=line["state"]))
    together = {**before, **after}
    moved_steps = sum(together[step] != whole[step] for step in whole)
    twice = len(before.keys() & after.keys())
    wrong = epoch(trial, together)["wrong"] + moved_steps + twice
    return {
        "case": "lost", "nodes": trial.nodes, "killed": len(victims), "in_step": middle,
        "resumed_on": left, "at_step": min(after), "steps_that_differ": moved_steps, "wrong": wrong,
    }  # fmt: skip


def downloads(trial: Trial, order: str, shards: list[int]) -> Row:
    """Shards that a node downloads in an epoch; its share: what that is if no two need the same."""
    samples = trial.batch * trial.steps
    said = shards_of_node(order, samples, SHARD, trial.nodes, trial.batch)
    return {
        "case": "downloads", "order": order, "nodes": trial.nodes,
        "shards_a_node": round(sum(shards) / len(shards), 2), "predicted": round(said, 2),
        "times_its_share": round(sum(shards) / (samples / SHARD), 2),
        "cache_hits": round(1 - sum(shards) / samples, 3),
    }  # fmt: skip


def mixture(trial: Trial) -> Row:
    """Counts of three sets over all nodes after every step, against their weights; and shards."""
    text = {"modality": "text", "views": {}, "stream": {"batch_size": trial.batch, "mix": WEIGHTS}}
    recipe = parse_recipe(yaml.safe_dump(text), path="nodes")
    here = trial.url.removeprefix("sleeping://")  # planned alone: nothing is read
    had, worst, planned = Counter[int](), Fraction(0), 0
    needed: list[set[tuple[int, ...]]] = [set() for _ in range(trial.nodes)]
    sources = []
    for rank in range(trial.nodes):
        reading = ReadingRank(rank, trial.nodes, modality="text")
        source = open_source(recipe, dict.fromkeys(WEIGHTS, here), reading)
        assert isinstance(source, Packed)
        sources.append(source)
    for step in range(trial.steps):
        for source, shards in zip(sources, needed, strict=True):
            wants = source.wants(step)
            had.update(wants.corpora.tolist())
            columns = wants.corpora, wants.epochs, wants.shards
            shards.update(zip(*(column.tolist() for column in columns), strict=True))
        planned += trial.batch
        for corpus, weight in enumerate(WEIGHTS.values()):
            worst = max(worst, abs(had[corpus] - Fraction(str(weight)) * planned))
    for source in sources:
        source.close()
    shards_a_node, all_shards = sum(map(len, needed)) / trial.nodes, len(set.union(*needed))
    return {
        "case": "mixture", "nodes": trial.nodes, "samples": planned,
        "shares": [had[corpus] / planned for corpus in range(len(WEIGHTS))],
        "farthest_from_weight_samples": float(worst), "wrong": int(worst >= 1),
        "shards_a_node": round(shards_a_node, 2), "of_shards": all_shards,
        "times_its_share": round(shards_a_node * trial.nodes / all_shards, 2),
    }  # fmt: skip


if __name__ == "__main__":
    main()
