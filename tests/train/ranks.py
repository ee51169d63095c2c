"""Trains a list of runs in one torchrun; writes which samples each step saw.

`ranks.py PLAN`: PLAN is a JSON file, {"shards", "runs": [{"out", "recipe", and of `train`
"max_steps", "resume", "kill"}]}. Of a run there are OUT/metrics.jsonl, a row per step, and
OUT/RANK.uids, a line per batch: its step and the uids of this rank.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch

import sslpipe
from sslpipe.recipe import parse_recipe
from sslpipe.train import Every, Silent, start_world, train
from sslpipe.train.run import initial_method

EVERY = Every(log=1, save=4)


class KillAt(Silent):
    """Ends this process without a word once a step is done."""

    def __init__(self, step):
        self.at = step

    def step(self, step):
        if step == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


class Seen:
    """A pipeline that writes down which samples its batches have."""

    def __init__(self, pipeline, path):
        self._pipeline, self._path = pipeline, path

    def __getattr__(self, name):
        return getattr(self._pipeline, name)

    def __len__(self):
        return len(self._pipeline)

    def __iter__(self):
        for batch in self._pipeline:
            with self._path.open("a") as file:
                file.write(json.dumps([batch.step, batch.uids.tolist()]) + "\n")
            yield batch


def go(shards, out, recipe, *, kill=0, **options):
    """One run, as `train_recipe` makes it."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    recipe = parse_recipe(recipe, path=f"{out.name}.yaml")
    with sslpipe.load(recipe, shards=shards, device="cpu") as pipe:
        method = initial_method(recipe, pipe.spec)
        seen = Seen(pipe, out / f"{pipe.rank}.uids")
        show = KillAt(kill)
        train(seen, method, recipe.train, out=out, progress=show, every=EVERY, **options)


def main(plan):
    plan = json.loads(Path(plan).read_text())
    torch.set_num_threads(1)
    with start_world("cpu"):
        for run in plan["runs"]:
            go(plan["shards"], **run)


if __name__ == "__main__":
    main(sys.argv[1])
