"""Trains a list of runs in one torchrun; writes which samples each step saw.

`ranks.py PLAN`: PLAN is a JSON file, {"shards", "runs": [{"out", "recipe", "max_steps", "resume",
"kill": [rank, batch]}]}. Of a run there are OUT/metrics.jsonl, a row per step, and for each number
of ranks OUT/RANK-of-RANKS.uids, a line per batch: its number and the uids of this rank.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch

import sslpipe
from sslpipe.recipe import parse_recipe
from sslpipe.recipe.schema import MonitorSection
from sslpipe.train import Every, compiling, start_world, train
from sslpipe.train.run import initial_method

EVERY = Every(log=1, monitor=5, save=4)


class Mean:
    """A monitor of one number, a function of all weights."""

    settings, line = MonitorSection(every_epochs=1), "the mean of what an encoder makes of ones"

    def __call__(self, encoder):
        with torch.no_grad():  # of a ViT, which does not change its mode for it
            return {"mean": encoder(torch.ones(2, 3, 16, 16)).abs().mean().item()}


class Seen:
    """A pipeline that writes down which samples its batches have."""

    def __init__(self, pipeline, path, kill):
        self._pipeline, self._path, self._kill = pipeline, path, kill

    def __getattr__(self, name):
        return getattr(self._pipeline, name)

    def __len__(self):
        return len(self._pipeline)

    def __iter__(self):
        for batch in self._pipeline:
            if [self._pipeline.rank, batch.step] == self._kill:
                os.kill(os.getpid(), signal.SIGKILL)
            with self._path.open("a") as file:
                file.write(json.dumps([batch.step, batch.uids.tolist()]) + "\n")
            yield batch


def go(shards, out, recipe, *, kill=None, **options):
    """One run, as `train_recipe` makes it."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    recipe = parse_recipe(recipe, path=f"{out.name}.yaml")
    with sslpipe.load(recipe, shards=shards, device="cpu") as pipe:
        method = initial_method(recipe, pipe.spec)
        seen = Seen(pipe, out / f"{pipe.rank}-of-{pipe.world_size}.uids", kill)
        monitor = Mean() if recipe.train.monitor else None
        train(seen, method, recipe.train, out=out, every=EVERY, monitor=monitor, **options)


def main(plan):
    plan = json.loads(Path(plan).read_text())
    torch.set_num_threads(1)
    compiling.BACKEND = "aot_eager"  # Inductor takes a minute for what these runs do in a second
    with start_world("cpu"):
        for run in plan["runs"]:
            go(plan["shards"], **run)


if __name__ == "__main__":
    main(sys.argv[1])
