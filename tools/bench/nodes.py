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
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import yaml

from sslpipe.modalities.text.codec import TextCodec
from sslpipe.recipe import parse_recipe
from sslpipe.shards import PackSettings, open_manifest, pack
from sslpipe.stream.open_source import ReadingRank, open_source
from sslpipe.stream.packed import Packed

sys.path.insert(0, str(Path(__file__).parent))
from node_trial import (
    SHARD,
    SLOWER,
    Records,
    Row,
    SleepingStore,
    Trial,
    lines_of,
    run,
    step_seconds,
)
from scale_run import shards_of_node

WEIGHTS = {"a": 0.6, "b": 0.3, "c": 0.1}


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
    with ThreadPoolExecutor(1) as threads:
        sources = []
        for rank in range(trial.nodes):
            reading = ReadingRank(rank, trial.nodes, threads, modality="text")
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
