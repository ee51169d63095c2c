"""Kill, damage and starve runs at random, and compare every sample with the plan.

    python tools/bench/chaos.py [--faults 200] [--seed 0] [--mode all|whole|damaged|server|workers]

A trial is a run over small shards by ranks in processes of their own. At random moments ranks are
killed (SIGKILL), and the run goes on, on another number of ranks, from the state that the slowest
had reached. Some trials read shards with flipped bits (bad samples are replaced), some read from an
HTTP server that drops connections, answers 500 or sends too little. In trials of `workers` it is
the workers of a run in this process that are killed. Whatever happens, the sample at
every (step, slot), its crops and its pixels must be those of an undisturbed run in one process:
nothing lost, doubled or in another place.
"""

import argparse
import hashlib
import itertools
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faulty_server import FaultyServer
from PIL import Image
from provenance import row
from rich.console import Console
from rich.progress import Progress

import sslpipe
from sslpipe.batch import Batch
from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.modalities.loading import PackedLoading
from sslpipe.pipeline import Pipeline
from sslpipe.recipe import parse_recipe
from sslpipe.shards import PackSettings, open_manifest, pack, read_index
from sslpipe.stream.workers import Workers

RECIPE = """
stream: {batch_size: 12, seed: 3, max_bad_fraction: 1.0}
views:
  global:
    count: 2
    ops: [RandomResizedCrop: {size: [16, 16]}, RandomHorizontalFlip, RandomSolarize: {p: 0.3}]
masks: {random: {view: global, patch_size: 4, sampler: random}}
run: {threads: 2, prefetch: 2, executor: kornia}
"""
WORLDS = (1, 2, 3, 4, 6)
MODES = ("whole", "damaged", "server", "workers")
STEPS = 40  # about eleven epochs
Record = dict[str, str]  # slot -> digest
State = dict[str, Any] | None  # of a pipeline; None: at its beginning


@dataclass
class Tally:
    """What was done to the runs, and what came out."""

    done: Counter[str] = field(default_factory=Counter)
    samples: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def faults(self) -> int:
        kinds = "kills", "worker kills", "flipped bits", "server failures"
        return sum(self.done[kind] for kind in kinds)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--faults", type=int, default=200)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--mode", choices=("all", *MODES), default="all")
    chosen = options.parse_args()
    torch.set_num_threads(1)  # threads do not survive the forks
    logging.getLogger("sslpipe").setLevel(logging.ERROR)  # bad samples are meant here
    rng, tally, console = random.Random(chosen.seed), Tally(), Console()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = make_shards(folder)
        with Progress(console=console) as progress:
            task = progress.add_task("faults", total=chosen.faults)
            for number in itertools.count():
                if tally.faults >= chosen.faults or tally.wrong:
                    break
                kind = rng.choice(MODES) if chosen.mode == "all" else chosen.mode
                trial(folder / f"trial-{number}", shards, kind, rng, tally)
                progress.update(task, completed=tally.faults)
    done = ", ".join(f"{count} {what}" for what, count in sorted(tally.done.items()))
    figures = f"{done}; {tally.samples:,} samples compared, {len(tally.wrong)} not as planned"
    console.print(figures)
    for wrong in tally.wrong[:20]:
        console.print(wrong, style="red")
    console.print(row(figures), soft_wrap=True)
    raise SystemExit(bool(tally.wrong))


def make_shards(folder: Path) -> Path:
    """47 pictures in about eight shards."""
    noise = np.random.default_rng(0)
    for i in range(47):
        path = folder / "images" / f"class{i % 3}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (24, 20, 3), dtype=np.uint8)).save(path)
    pack(
        [folder / "images"], folder / "shards", PackSettings(codec=ImageCodec(), shard_bytes=20_000)
    )
    return folder / "shards"


def trial(folder: Path, shards: Path, kind: str, rng: random.Random, tally: Tally) -> None:
    """One run with a source of its own, killed about four times, or its workers more often."""
    folder.mkdir()
    tally.done[f"runs on {kind} shards"] += 1
    place = shards
    if kind == "damaged":
        place = folder / "shards"
        shutil.copytree(shards, place)
        tally.done["flipped bits"] += flip_bits(place, rng)
    truth = dict(enumerate(records(place)))
    if kind == "workers":
        kill_workers(shards, truth, rng, tally)
        return
    if kind != "server":
        run_to_the_end(folder, str(place), None, truth, rng, tally)
        return
    with FaultyServer(shards, seed=rng.randrange(2**31)) as server:
        run_to_the_end(folder, server.url, folder / "cache", truth, rng, tally)
        tally.done["server failures"] += server.failures


def kill_workers(place: Path, truth: dict[int, Record], rng: random.Random, tally: Tally) -> None:
    """A run in this process, one of whose workers is killed at some moment of most steps."""
    with pipeline(str(place), None, 0, 1, "run.workers=3") as pipe:
        assert isinstance(pipe.loading, PackedLoading)
        assert isinstance(pipe.loading.crew, Workers)
        killed = set[int]()
        for step, record in enumerate(handed(pipe, None)):
            compare({"step": step, "samples": record}, truth, 1, tally)
            time.sleep(rng.uniform(0.02, 0.25))
            victims = pipe.loading.crew.pids[:2]  # the newest may be starting
            if victims and rng.random() < 0.8:
                victim = rng.choice(victims)
                os.kill(victim, signal.SIGKILL)
                killed.add(victim)
        tally.done["worker kills"] += len(killed)
        if pipe.replaced:
            tally.wrong.append(f"{pipe.replaced} samples were taken for bad")


def flip_bits(place: Path, rng: random.Random) -> int:
    """Damage the payloads of a few samples; returns how many."""
    manifest = open_manifest(place)
    hit = rng.randrange(1, 4)
    for _ in range(hit):
        shard = rng.choice(manifest.shards)
        tar = place / shard.file
        record = read_index(tar).payloads[rng.randrange(shard.samples)]
        data = bytearray(tar.read_bytes())
        data[int(record["offset"]) + rng.randrange(int(record["size"]))] ^= 1 << rng.randrange(8)
        tar.write_bytes(data)
    return hit


def run_to_the_end(
    folder: Path,
    place: str,
    cache: Path | None,
    truth: dict[int, Record],
    rng: random.Random,
    tally: Tally,
) -> None:
    """Start, kill and resume until every step is done; compare all that was handed out."""
    state: State = None
    step, life = 0, 0
    while step < STEPS:
        world_size = rng.choice(WORLDS)
        logs = [folder / f"{life}-{rank}.jsonl" for rank in range(world_size)]
        deadline = rng.uniform(0.02, 0.6) if life < 4 else None
        tally.done["kills"] += live(logs, place, cache, state, deadline)
        lines = [list(finished(log)) for log in logs]
        for line in (line for of_rank in lines for line in of_rank):
            compare(line, truth, world_size, tally)
        behind = min(lines, key=len)
        if behind:
            state, step = behind[-1]["state"], behind[-1]["step"] + 1
        life += 1


def live(
    logs: list[Path], place: str, cache: Path | None, state: State, deadline: float | None
) -> int:
    """All ranks of one life; with a deadline they are killed then. Returns how many were."""
    context = multiprocessing.get_context("fork")  # seconds of imports are not repeated
    ranks = [
        context.Process(target=consume, args=(place, cache, state, rank, len(logs), log))
        for rank, log in enumerate(logs)
    ]
    for rank in ranks:
        rank.start()
    end = time.monotonic() + (deadline or 120)
    killed = 0
    for rank in ranks:
        rank.join(max(0.0, end - time.monotonic()))
        if rank.is_alive():
            assert deadline, "a run hangs"
            assert rank.pid
            os.kill(rank.pid, signal.SIGKILL)
            rank.join()
            killed += 1
        assert rank.exitcode in (0, -signal.SIGKILL), f"a rank failed: exit code {rank.exitcode}"
    return killed


def consume(
    place: str, cache: Path | None, state: State, rank: int, world_size: int, log: Path
) -> None:
    """One rank: log what it is handed."""
    with log.open("w") as file, pipeline(place, cache, rank, world_size) as pipe:
        for record in handed(pipe, state):
            line = {"step": pipe.step - 1, "state": pipe.state_dict(), "samples": record}
            file.write(json.dumps(line) + "\n")
            file.flush()
            time.sleep(0.002)


def records(place: Path) -> Iterator[Record]:
    """Run undisturbed, and yield what every step held."""
    with pipeline(str(place), None, 0, 1) as pipe:
        yield from handed(pipe, None)


def pipeline(place: str, cache: Path | None, rank: int, world_size: int, *words: str) -> Pipeline:
    """The data side of a run."""
    overrides = [f"run.cache={cache}", *words] if cache else [*words]
    recipe = parse_recipe(RECIPE, overrides=overrides)
    return sslpipe.load(recipe, shards=place, device="cpu", rank=rank, world_size=world_size)


def handed(pipe: Pipeline, state: State) -> Iterator[Record]:
    """Digests of all samples from `state` to the last step, by their slot in the global batch."""
    if state:
        pipe.load_state_dict(state)
    while pipe.step < STEPS:
        for batch in pipe:
            slots = pipe.source.slots_at(batch.step).tolist()
            yield dict(zip(map(str, slots), digests(batch), strict=True))
            if pipe.step == STEPS:
                return


def digests(batch: Batch) -> list[str]:
    """What each sample is: its id, its parameters, its mask, its pixels."""
    parts = (batch.params["global"], batch.masks["random"], batch.views["global"])
    return [
        hashlib.blake2b(
            b"".join([uid.numpy().tobytes(), *(part[:, b].numpy().tobytes() for part in parts)]),
            digest_size=12,
        ).hexdigest()
        for b, uid in enumerate(batch.uids)
    ]


def finished(log: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a rank's log."""
    text = log.read_text() if log.exists() else ""
    for line in text.splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)


def compare(line: dict[str, Any], truth: dict[int, Record], world_size: int, tally: Tally) -> None:
    """One rank's share of one step with the plan."""
    planned = truth[line["step"]]
    assert len(line["samples"]) * world_size == len(planned)
    for slot, digest in line["samples"].items():
        tally.samples += 1
        if planned[slot] != digest:
            tally.wrong.append(f"step {line['step']} slot {slot}: {world_size} ranks")


if __name__ == "__main__":
    main()
