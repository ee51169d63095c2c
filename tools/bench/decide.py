"""What planning costs a sample, and deciding a batch: JSON lines, nothing is read or decoded.

    python tools/bench/decide.py [--repeats 30]

Planning: consecutive steps of one rank, plan and place in its shard, over ImageNet's 1,281,167
samples in shards of 1000; us of CPU a sample, the median of `repeats` runs of 64 steps. Deciding:
ms of CPU a batch, the median of `repeats` batches of photos of 500 x 375 px (CIFAR's: 32 x 32).
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from itertools import count
from statistics import median
from typing import Any

import numpy as np

from sslpipe.modalities.image.decider import ImageDecider
from sslpipe.recipe import find_recipe, load_recipe
from sslpipe.rng import Place
from sslpipe.stream.mixture import PLANNED, Mixture
from sslpipe.stream.order import Order, build_order, default_lanes, slots
from sslpipe.stream.plan import Single
from sslpipe.stream.rank_split import RankSplit

STEPS = 64
SIZES = np.diff(np.r_[np.arange(0, 1_281_167, 1000), 1_281_167])
ORDERS = ("lanes", "global", "sequential")
RECIPES = ("simclr", "dino", "ibot", "ijepa", "mae", "beit", "jigsaw")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--repeats", type=int, default=30)
    repeats = options.parse_args().repeats
    for row in (*planning(repeats), *deciding(repeats)):
        print(json.dumps(row), flush=True)


def planning(repeats: int) -> Iterator[dict[str, Any]]:
    """A row for each order, and for a mixture of two corpora, at shares of 32 to 512 samples."""
    for world in (1, 64):
        for share in (32, 128, 512):
            size = share * world
            lanes = default_lanes(size)
            mine = slots(batch_size=size, lanes=lanes, rank=world // 2, world_size=world)
            for name in (*ORDERS, "mixture, lanes", "mixture, global"):
                kind = name.rpartition(" ")[2]
                orders = [order_of(kind, lanes, seed) for seed in range(2)]
                run = planner(orders, size, mine)
                if name.startswith("mixture"):
                    run = mixture_planner(orders, size, rank=world // 2, world_size=world)
                yield {
                    "plan": name, "ranks": world, "share": share,
                    "us_per_sample": round(1e3 * timed(run, repeats) / STEPS / share, 2),
                }  # fmt: skip


def order_of(kind: str, lanes: int, seed: int) -> Order:
    return build_order(SIZES, kind=kind, seed=seed, lanes=lanes, window=4)


def planner(orders: list[Order], size: int, mine: np.ndarray) -> Callable[[], None]:
    """Plans STEPS steps after those of the call before it."""
    plan = Single(int(SIZES.sum()), batch_size=size, remainder="wrap")
    steps = count()

    def run() -> None:
        for _ in range(STEPS):
            orders[0].locate(plan(next(steps), mine).positions)

    return run


def mixture_planner(
    orders: list[Order], size: int, *, rank: int, world_size: int
) -> Callable[[], None]:
    """The same of a mixture, as many steps in one go as a stream plans."""
    split = RankSplit(
        Mixture([7, 3], batch_size=size, seed=0, epoch_samples=int(SIZES.sum())),
        samples=np.array([order.samples for order in orders]),
        lanes=np.array([order.stride for order in orders]),
        rank=rank, world_size=world_size,
    )  # fmt: skip
    firsts, together = count(step=STEPS), min(STEPS, max(1, PLANNED // split.share))

    def run() -> None:
        first = next(firsts)
        for start in range(first, first + STEPS, together):
            picks = split.picks(range(start, start + together))
            for corpus in np.unique(picks.corpora):
                orders[corpus].locate(picks.positions[picks.corpora == corpus])

    return run


def deciding(repeats: int) -> Iterator[dict[str, Any]]:
    """A row for each recipe."""
    for name in (*RECIPES, "simclr_cifar"):
        samples, sides = (512, (32, 32)) if name.endswith("cifar") else (256, (375, 500))
        recipe = load_recipe(find_recipe(name))
        decider = ImageDecider.of_recipe(recipe, tuple(recipe.views))
        extents, steps = np.tile(sides, (samples, 1)), count()
        uids = np.random.default_rng(0).integers(0, 2**62, samples)

        def where(steps: Iterator[int] = steps, uids: np.ndarray = uids) -> dict[str, Any]:
            return {"epochs": np.zeros_like(uids), "uids": uids + next(steps)}

        place = Place(0, np.arange(samples), samples)
        yield {
            "decide": name, "samples": samples,
            "ms": round(timed(lambda: decider.decide(**where(), place=place, extents=extents), repeats), 3),  # noqa: B023, E501
            "instructions_ms": round(timed(lambda: decider.instructions(**where(), extents=extents), repeats), 3),  # noqa: B023, E501
        }  # fmt: skip


def timed(run: Callable[[], object], repeats: int) -> float:
    """The median in ms of CPU of this thread, after three calls that fill caches."""
    return median(list(cpu_ms(run, repeats + 3))[3:])


def cpu_ms(run: Callable[[], object], repeats: int) -> Iterator[float]:
    for _ in range(repeats):
        start = time.thread_time()
        run()
        yield 1e3 * (time.thread_time() - start)


if __name__ == "__main__":
    main()
