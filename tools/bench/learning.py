"""Does a method learn? Its CIFAR recipe for so many minutes, then k-NN and a linear probe.

    python tools/bench/learning.py simclr dino --budget 10 --train cifar/train --test cifar/test
                                   [--all] [--small] [--finetune] [--out learning] [--device cpu]
                                   [--set stream.batch_size=256] [--epochs N instead of --budget]

For each METHOD the recipe METHOD_cifar: its step time is measured, the epochs are chosen so that
the whole run, schedule included, fits the budget, and warm-up and milestones shrink in proportion.
k-NN: k = 20, T = 0.07, and as lightly's table of CIFAR-10 has it, k = 200, T = 0.1.
Beside the trained encoder: the same one untrained (once for all methods that begin alike), and
pixels less their mean. `--finetune` also trains each encoder on 50 labels per class. `--small`:
narrow backbones and heads and faster teachers, for CPUs.
With a GPU, beside the published figures of a ResNet-18 (whole CIFAR-10, packed; simclr in minutes):
    python tools/bench/learning.py simclr moco_v1 byol barlow_twins dino mae --epochs 100
                                   --train cifar50k/train --test cifar50k/test --out learning-gpu
A run that was killed goes on, a method with a result is skipped: delete OUT/METHOD to repeat it.
OUT/METHOD/result.json holds all numbers; the table and the rows come from these files.
"""

import argparse
import hashlib
import itertools
import json
import resource
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from provenance import row
from rich.console import Console
from rich.table import Table
from short_recipes import fitting_epochs, planned, small
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import sslpipe
from sslpipe.evaluate import Features, extract, knn, linear
from sslpipe.evaluate.encoding import Pixels
from sslpipe.evaluate.features import central, central_batches
from sslpipe.evaluate.finetune_small import Images, finetune_small, labelled_images
from sslpipe.evaluate.subjects import first_encoder
from sslpipe.recipe import Recipe, find_recipe, load_recipe, recipes
from sslpipe.train import Bar, initial_method, load_encoder, train
from sslpipe.train.alarm import Alarm
from sslpipe.train.log import PER_SECOND, rows_until

SUFFIX = "_cifar"
PER_CLASS, TUNING_EPOCHS = 50, 20  # labels; 20,000 images for both encoders of CIFAR-10
SAID = {
    "epochs": "epochs", "minutes": "min", "knn": "k-NN", "untrained_knn": "untrained",
    "pixels_knn": "pixels", "knn200": "k = 200", "linear": "linear",
    "untrained_linear": "untrained", "finetuned": "fine-tuned", "untrained_finetuned": "scratch",
}  # fmt: skip
HEAD = ("method", *SAID.values(), "loss", "alarms")
FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
Numbers = dict[str, Any]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("methods", nargs="*")
    options.add_argument("--all", action="store_true", help="every recipe for 32 px")
    length = options.add_mutually_exclusive_group(required=True)
    length.add_argument("--budget", type=float, help="minutes of each pretraining")
    length.add_argument("--epochs", type=int, help="of each pretraining")
    options.add_argument("--train", type=Path, required=True)
    options.add_argument("--test", type=Path, required=True)
    options.add_argument("--out", type=Path, default=Path("learning"))
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--small", action="store_true")
    options.add_argument("--finetune", action="store_true")
    options.add_argument("--set", action="append", default=[], dest="sets")
    chosen = options.parse_args()
    known = [name.removesuffix(SUFFIX) for name in recipes() if name.endswith(SUFFIX)]
    console, results = Console(width=170), {}
    # on CPUs the fused kernel's backward takes over half of a ViT's step of 65 tokens
    kernels = [SDPBackend.MATH] if chosen.device == "cpu" else FUSED
    with sdpa_kernel(kernels):
        for name in known if chosen.all else chosen.methods:
            results[name] = result_of(name, chosen)
            console.print(table(results))
    print(row(f"{len(results)} methods: the table", "timm"), markdown(results), sep="\n")


def result_of(name: str, chosen: argparse.Namespace) -> Numbers:
    """The numbers of a method: read, or measured and written."""
    return remembered(chosen.out / name / "result.json", lambda: measured(name, chosen))


def remembered(path: Path, measure: Callable[[], Numbers]) -> Numbers:
    """The numbers of a file, which is made if it is missing."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(measure(), indent=1))
        part.replace(path)
    return json.loads(path.read_text())


def measured(name: str, chosen: argparse.Namespace) -> Numbers:
    """Pretrain and judge one method."""
    folder = chosen.out / name
    recipe = load_recipe(find_recipe(name + SUFFIX), overrides=chosen.sets)
    if chosen.small:
        recipe = small(recipe)
    cost = cost_of_training(recipe, folder, chosen)
    backbone = recipe.train.backbone
    return {
        "recipe": name + SUFFIX,
        "backbone": [backbone.name, dict(backbone.settings)],
        "device": chosen.device,
        **cost,
        **judged(folder / "run" / "last.pt", chosen),
    }


def cost_of_training(recipe: Recipe, folder: Path, chosen: argparse.Namespace) -> Numbers:
    """Train in FOLDER/run, for as many epochs as fit; what it took, and how the loss went."""
    recipe = planned(recipe, folder / "recipe.json", fitting=lambda r: epochs_of(r, chosen))
    before = cpu_seconds()
    alarms = pretrain(recipe, folder / "run", chosen)
    spent = cpu_seconds() - before
    return {
        "sets": chosen.sets,
        "epochs": recipe.train.epochs,
        "cpu_minutes": spent / 60,  # of the last process alone, if the run was resumed
        **history(folder / "run" / "metrics.jsonl", recipe),
        "alarms": alarms,
    }


def cpu_seconds() -> float:
    """Of this process and of the workers that have ended."""
    used = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def opened(recipe: Recipe, chosen: argparse.Namespace) -> sslpipe.Pipeline:
    return sslpipe.load(recipe, shards=chosen.train, device=chosen.device)


def epochs_of(recipe: Recipe, chosen: argparse.Namespace) -> int:
    """As asked for, or as fit the budget."""
    if chosen.epochs:
        return chosen.epochs
    shards, device = chosen.train, chosen.device
    return fitting_epochs(recipe, shards=shards, device=device, minutes=chosen.budget)


def pretrain(recipe: Recipe, out: Path, chosen: argparse.Namespace) -> list[str]:
    """Train, or go on, to the end; the alarms of the whole run."""
    with opened(recipe, chosen) as pipe:
        method = initial_method(recipe, pipe.spec)
        resume = (out / "last.pt").exists()
        done = train(pipe, method, recipe.train, out=out, resume=resume, progress=Bar())
    if done.steps < done.total:
        raise SystemExit(f"stopped; the same command goes on from {out / 'last.pt'}")
    alarm = Alarm(method, warmup_epochs=recipe.train.warmup_epochs)
    return [m for line in rows_until(out / "metrics.jsonl", done.total) for m in alarm.read(line)]


def history(path: Path, recipe: Recipe) -> Numbers:
    """The time of all steps, and the loss: means of tenths of the run, first to last."""
    rows = rows_until(path, 2**62)
    steps = [b["step"] - a["step"] for a, b in itertools.pairwise([{"step": 0}, *rows])]
    samples = recipe.stream.batch_size * recipe.train.accumulate
    rates = [next(r[name] for name in r if name.endswith(PER_SECOND)) for r in rows]
    seconds = sum(s * samples / rate for s, rate in zip(steps, rates, strict=True))
    tenths = np.array_split([row["loss"] for row in rows], min(10, len(rows)))
    return {"minutes": seconds / 60, "losses": [float(tenth.mean()) for tenth in tenths]}


def judged(checkpoint: Path, chosen: argparse.Namespace) -> Numbers:
    """The accuracies of the trained encoder, of the untrained one, and of pixels."""
    encoder, recipe = load_encoder(checkpoint)
    untrained = first_encoder(recipe)
    base = chosen.out / "untrained" / f"{digest(untrained, recipe, chosen.finetune)}.json"

    def baseline() -> Numbers:
        numbers = accuracies(untrained, recipe, chosen)
        bank, queries = (features(Pixels(), recipe, s, chosen) for s in sets(chosen))
        mean = bank.features.mean(0)
        bank, queries = (replace(f, features=f.features - mean) for f in (bank, queries))
        return {"pixels_knn": knn(bank, queries).top1, **prefixed("untrained_", numbers)}

    return {**accuracies(encoder, recipe, chosen), **remembered(base, baseline)}


def digest(encoder: nn.Module, recipe: Recipe, finetuned: bool) -> str:
    """Names what the baseline depends on: first weights, images, protocols."""
    ops = [(op.name, op.settings) for op in central(recipe).views["global"].ops]
    made = hashlib.sha256(repr((ops, finetuned)).encode())
    for name, weight in encoder.state_dict().items():
        made.update(name.encode() + weight.numpy().tobytes())
    return made.hexdigest()[:16]


def prefixed(prefix: str, numbers: Numbers) -> Numbers:
    return {prefix + name: number for name, number in numbers.items()}


def accuracies(encoder: nn.Module, recipe: Recipe, chosen: argparse.Namespace) -> Numbers:
    """k-NN and linear probe of an encoder; fine-tuned on few labels, if wanted."""
    bank, queries = (features(encoder, recipe, shards, chosen) for shards in sets(chosen))
    numbers = {
        "knn": knn(bank, queries).top1,
        "knn200": knn(bank, queries, k=200, temperature=0.1).top1,
        "linear": linear(bank, queries).top1,
    }
    if chosen.finetune:
        few, test = (images(recipe, shards, chosen) for shards in sets(chosen))
        few = few.few(PER_CLASS, seed=0)
        device = torch.device(chosen.device)
        numbers["finetuned"] = finetune_small(encoder, few, test, device, epochs=TUNING_EPOCHS).top1
    return numbers


def sets(chosen: argparse.Namespace) -> tuple[Path, Path]:
    return chosen.train, chosen.test


def features(
    module: nn.Module, recipe: Recipe, shards: Path, chosen: argparse.Namespace
) -> Features:
    with central_batches(recipe, shards=shards, device=chosen.device) as batches:
        return extract(module, batches, chosen.device)


def images(recipe: Recipe, shards: Path, chosen: argparse.Namespace) -> Images:
    with central_batches(recipe, shards=shards, device=chosen.device) as batches:
        return labelled_images(batches)


def table(results: Mapping[str, Mapping[str, Any]]) -> Table:
    """Print one line per method."""
    made = Table(*HEAD)
    for name, result in results.items():
        made.add_row(*cells(name, result))
    return made


def markdown(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The same for BENCHMARKS.md, with backbones and settings."""
    head = [*HEAD, "backbone", "settings"]
    lines = [head, ["---"] * len(head)]
    for name, result in results.items():
        kind, settings = result["backbone"]
        lines.append([*cells(name, result), f"{kind} {settings}", " ".join(result["sets"])])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cells(name: str, result: Mapping[str, Any]) -> list[str]:
    numbers = [shown(result.get(key)) for key in SAID]
    return [name, *numbers, curve(result["losses"]), str(len(result["alarms"]))]


def shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def curve(losses: list[float]) -> str:
    """Four points of the loss, first and last among them."""
    points = np.linspace(0, len(losses) - 1, 4).round().astype(int)
    return " ".join(f"{losses[point]:.4g}" for point in points)


if __name__ == "__main__":
    main()
