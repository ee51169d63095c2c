"""What a method costs beyond its backbone: step time against the bare forward and backward.

    python tools/bench/methods.py [NAME ...] [--suffix _cifar] [--batch 64] [--rounds 5]
                                  [--device cpu] [--precision fp32]

For each recipe NAME + suffix, all of them unless named, with its own backbone. One batch is made of
the photos of shards/sample and used again and again: no decoding, no augmentation. `step` is the
whole optimizer step of the reference loop, after_step included. `bare` is forward and backward of
the backbone alone, on as many images of as many pixels as the batch holds; a masked method, whose
encoder sees fewer tokens, may stay below 1. Rounds run both after each other; ratios are medians
over rounds.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable

import torch
from provenance import ROOT, row
from rich.console import Console
from rich.table import Table

import sslpipe
from sslpipe.batch import Batch
from sslpipe.device.handoff import settle
from sslpipe.encoders import build_encoder
from sslpipe.recipe import find_recipe, load_recipe, recipes
from sslpipe.train import initial_method
from sslpipe.train.loop import optimizer_step
from sslpipe.train.record import Guard
from sslpipe.train.run import TrainRun, encoded_view, move_module, prepare_run

WARMUP = 3  # rounds
Work = Callable[[], object]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("names", nargs="*", default=[])
    options.add_argument("--suffix", default="_cifar")
    options.add_argument("--batch", type=int, default=64)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--precision", default="fp32")
    chosen = options.parse_args()
    known = [n.removesuffix(chosen.suffix) for n in recipes() if n.endswith(chosen.suffix)]
    table = Table("method", "backbone", "images", "step ms", "bare ms", "step / bare")
    figures = []
    for name in chosen.names or known:
        line = measured(name + chosen.suffix, chosen)
        table.add_row(name, *line)
        figures.append(f"{name} {line[-1]}")
    console = Console(width=120)
    console.print(table)
    said = f"step / bare forward and backward, batch {chosen.batch}, {chosen.precision}, "
    console.print(row(said + f"{chosen.device}: {', '.join(figures)}", "timm"), soft_wrap=True)


def measured(recipe_name: str, chosen: argparse.Namespace) -> list[str]:
    """The cells of one recipe."""
    sets = [f"stream.batch_size={chosen.batch}", f"train.precision={chosen.precision}"]
    sets.append("stream.allow_repeats=true")  # the photos are few
    recipe = load_recipe(find_recipe(recipe_name), overrides=sets)
    sample = ROOT / "shards" / "sample"
    with sslpipe.load(recipe, shards=sample, device=chosen.device) as pipe:
        batch = pipe.make_batch(pipe.load_share(0), 0)
        run = prepare_run(pipe, initial_method(recipe, pipe.spec), recipe.train)
        step = stepper(run, batch)
        bare = backbone_alone(run, batch)
        rounds = WARMUP + chosen.rounds
        pairs = [(timed(step, pipe.device), timed(bare, pipe.device)) for _ in range(rounds)]
    times = pairs[WARMUP:]
    steps, bares = zip(*times, strict=True)
    ratio = statistics.median(a / b for a, b in times)
    count = sum(v.shape[0] * v.shape[1] for v in batch.views.values())
    return [
        recipe.train.backbone.name, str(count), f"{statistics.median(steps) * 1e3:.1f}",
        f"{statistics.median(bares) * 1e3:.1f}", f"{ratio:.2f}",
    ]  # fmt: skip


def stepper(run: TrainRun, batch: Batch) -> Work:
    """One optimizer step of the reference loop, always on the same batch."""
    guard, last = Guard(run.device), run.plan.total - 1
    steps = itertools.count()
    return lambda: optimizer_step(run, itertools.repeat(batch), min(next(steps), last), guard)


def backbone_alone(run: TrainRun, batch: Batch) -> Work:
    """Forward and backward of a fresh backbone on all views, one forward per resolution."""
    settings = run.settings
    encoder = build_encoder(settings.backbone, encoded_view(run.pipeline.spec))
    move_module(encoder.train(), run.device)
    groups = [views.flatten(0, 1) for views in batch.views.values()]
    # random gradients: those of a sum vanish in batch norm, and denormal numbers are slow on CPUs
    gradients = [torch.randn(len(images), encoder.dim, device=run.device) for images in groups]

    def work() -> None:
        encoder.zero_grad()
        with run.autocast():
            features = [encoder(images) for images in groups]
        torch.autograd.backward([f.float() for f in features], gradients)

    return work


def timed(work: Work, device: torch.device) -> float:
    """Seconds of one call, the device waited for."""
    settle(device)
    start = time.perf_counter()
    work()
    settle(device)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
