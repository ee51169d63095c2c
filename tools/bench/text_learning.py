"""Do text methods learn? Each for so many CPU-seconds, then measured on documents held out by uid.

    OMP_NUM_THREADS=1 python tools/bench/text_learning.py gpt mlm t5 sentiment sentiment_gpt
        --data packed [--out text-learning] [--seconds 200] [--set train.lr_batch=16]

packed/english_pd and packed/movie_reviews: `sslpipe pack english_pd.jsonl.gz packed/english_pd
--modality text`, and so the other. gpt, mlm and t5 learn from 95 % of english_pd and are measured
on the others as `sslpipe eval` does; `sentiment` is an mlm on all of movie_reviews, without labels,
and a linear probe of whole reviews, over the authors' ten folds, beside the untrained encoder;
`sentiment_gpt` is the same of a gpt. The error is that of the mean of ten paired differences.
Budgets are CPU-seconds of this process (time.process_time), data, logging and checkpoints
included: a few steps are timed, and as many are planned, schedule included, as fit.
OUT/NAME/result.json holds all numbers; a task with one is not run again.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from types import MappingProxyType
from typing import Any

import torch
from learning import remembered
from provenance import row

import sslpipe
from sslpipe.evaluate import Subject, linear, open_subject
from sslpipe.evaluate.encoding import baseline_of
from sslpipe.evaluate.features import central_batches, extract_all
from sslpipe.evaluate.perplexity import perplexity
from sslpipe.recipe import Recipe, find_recipe, load_recipe
from sslpipe.report.pictures import SampleFinder
from sslpipe.train import Bar, initial_method, train
from sslpipe.train.loop import endless, optimizer_step
from sslpipe.train.record import Guard
from sslpipe.train.run import prepare_run

HELD_OUT = "stream.holdout={fraction: 0.05}"
WARMUP = 100  # steps
TIMED = 20  # steps that tell how long one takes, after a few that warm up
HEAD = """| run | steps | CPU-s | measure | trained | untrained | chance |
|---|---|---|---|---|---|---|"""
Numbers = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A run: a recipe of ours on a set, for some CPU-seconds."""

    recipe: str
    shards: str
    seconds: float
    sets: tuple[str, ...] = ()


TASKS: Mapping[str, Task] = MappingProxyType(
    {
        "gpt": Task("gpt_bytes", "english_pd", 200, (HELD_OUT,)),
        "mlm": Task("bert_bytes", "english_pd", 500, (HELD_OUT,)),
        "t5": Task("t5_bytes", "english_pd", 400, (HELD_OUT,)),
        "sentiment": Task("bert_bytes", "movie_reviews", 300),
        "sentiment_gpt": Task("gpt_bytes", "movie_reviews", 300),
    }
)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("tasks", nargs="+", choices=sorted(TASKS))
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--out", type=Path, default=Path("text-learning"))
    options.add_argument("--seconds", type=float, help="instead of the task's own")
    options.add_argument("--set", action="append", default=[], dest="sets")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    lines = []
    for name in chosen.tasks:
        path = chosen.out / name / "result.json"
        result = remembered(path, partial(measured, TASKS[name], name, chosen))
        lines += table_of(name, result)
    print(row(f"{len(chosen.tasks)} runs: the table"), HEAD, *lines, sep="\n")


def table_of(name: str, result: Numbers) -> list[str]:
    """The lines of a run for BENCHMARKS.md: each measure beside the untrained model and chance."""
    run = f"| `{name}` | {result['steps']:,} | {result['cpu_seconds']:.0f}"
    if "folds" in result:
        means = {encoder: mean(folds) for encoder, folds in result["folds"].items()}
        values = f"{means['trained']:.3f} | {means['untrained']:.3f} | {means['counts']:.3f}"
        gain, error = paired(result["folds"]["trained"], result["folds"]["untrained"])
        measure = f"probe, mean of ten folds, gain {gain:.3f} +- {error:.3f}; counts of tokens"
        return [f"{run} | {measure} | {values} |"]
    chance = {measure: f"{value:.3f}" for measure, value in result["chance"].items()}
    return [
        f"{run} | {measure} | {value['trained']:.3f} | {value['untrained']:.3f} | "
        f"{chance.get(measure, '')} |"
        for measure, value in result["measures"].items()
    ]


def paired(these: Sequence[float], those: Sequence[float]) -> tuple[float, float]:
    """The mean of the differences, and its standard error: folds are not quite independent."""
    gains = [this - that for this, that in zip(these, those, strict=True)]
    return mean(gains), stdev(gains) / len(gains) ** 0.5


def measured(task: Task, name: str, chosen: argparse.Namespace) -> Numbers:
    """Train as long as the budget says, and measure."""
    sets = [*task.sets, *chosen.sets]
    recipe = load_recipe(find_recipe(task.recipe), overrides=sets)
    shards, out = chosen.data / task.shards, chosen.out / name / "run"
    trained = remembered(
        chosen.out / name / "trained.json",
        lambda: pretrain(recipe, shards, chosen.seconds or task.seconds, out),
    )
    subject = open_subject(out)
    found = sentiment(subject, shards) if "sentiment" in name else guessing(subject, shards)
    return {"recipe": task.recipe, "sets": sets, **trained, **found}


def guessing(subject: Subject, shards: Path) -> Numbers:
    """What `sslpipe eval --protocols perplexity` says, all of it."""
    found = perplexity(subject, shards, device=torch.device("cpu"))
    names = dict.fromkeys(measure.name for measure in found["trained"])
    values = {
        encoder: {measure.name: measure.value for measure in measures}
        for encoder, measures in found.items()
    }
    chances = {m.name: m.chance for m in found["trained"] if m.chance is not None}
    return {
        "measures": {name: {e: values[e][name] for e in values} for name in names},
        "chance": chances,
        "protocol": found["trained"][0].protocol,
    }


def sentiment(subject: Subject, shards: Path) -> Numbers:
    """Accuracy of a probe (C = 1) of each of ten folds, fitted on the nine others."""
    with central_batches(subject.recipe, shards=shards, device="cpu", batch_size=50) as batches:
        assert subject.untrained is not None
        encoders = {"trained": subject.encoder, "untrained": subject.untrained()}
        found = extract_all(
            {**encoders, "counts": baseline_of(subject.encoder, "text")[1]}, batches, "cpu"
        )
    with SampleFinder(shards) as finder:
        keys = [sample.key for sample in finder.samples(found["trained"].uids.numpy())]
    fold_N = torch.tensor([fold_of(key) for key in keys])
    return {
        "folds": {
            encoder: [
                linear(features.at(fold_N != fold), features.at(fold_N == fold)).top1
                for fold in range(10)
            ]
            for encoder, features in found.items()
        }
    }


def fold_of(key: str) -> int:
    """The authors' fold of a review: cv000 to cv099 are 0, of both classes (README of the data)."""
    return int(key.rpartition("cv")[2][:3]) // 100


def pretrain(recipe: Recipe, shards: Path, seconds: float, out: Path) -> Numbers:
    """Train for about so many CPU-seconds; how many steps these were, and the last loss."""
    each = step_seconds(recipe, shards)
    recipe = of_steps(recipe, max(WARMUP + 1, int(seconds / each)))
    start = time.process_time()
    with sslpipe.load(recipe, shards=shards, device="cpu") as pipe:
        method = initial_method(recipe, pipe.spec)
        done = train(pipe, method, recipe.train, out=out, progress=Bar())
    took = time.process_time() - start
    return {"steps": done.steps, "cpu_seconds": took, "loss": done.metrics["loss"]}


def of_steps(recipe: Recipe, steps: int) -> Recipe:
    """The recipe as one epoch of so many steps, at a warm-up of WARMUP, in this process alone."""
    batches = steps * recipe.train.accumulate
    stream = recipe.stream.model_copy(update={"epoch_samples": batches * recipe.stream.batch_size})
    length = {"epochs": 1, "warmup_epochs": WARMUP / steps}
    return recipe.model_copy(
        update={
            "stream": stream,
            "train": recipe.train.model_copy(update=length),
            "run": recipe.run.model_copy(update={"workers": 0, "threads": 1}),
        }
    )


def step_seconds(recipe: Recipe, shards: Path) -> float:
    """CPU-seconds of a step, data included."""
    recipe = of_steps(recipe, WARMUP + 3 + TIMED)
    with (
        sslpipe.load(recipe, shards=shards, device="cpu") as pipe,
        closing(endless(pipe)) as batches,
    ):
        run = prepare_run(pipe, initial_method(recipe, pipe.spec), recipe.train)
        guard, start = Guard(pipe.device), 0.0
        for step in range(3 + TIMED):
            if step == 3:
                start = time.process_time()
            optimizer_step(run, batches, step, guard)
        return (time.process_time() - start) / TIMED


if __name__ == "__main__":
    main()
