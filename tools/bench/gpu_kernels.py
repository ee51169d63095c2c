"""The triton executor's kernels on a CUDA device: parity, time, host time, tunables; one JSON line
per row, printed at once. Within SECONDS on an H100, the decisive rows first.

    python tools/bench/gpu_kernels.py [--seconds 55] [--parts parity,times,host,tune,fused]

parity   float32 and bfloat16 views against `kornia` on chains of the tests, in 8-bit levels
times    us per view of 256 canvases of 500 x 375 that are on the device, bfloat16, by replay of a
         CUDA graph, beside a copy of the same bytes; and a profile by kernel
host     ms until a batch is asked for: tables, upload and launches, the device aside
tune     the times with other tiles, warps and limits of scratch memory
fused    the times with the kernels of gpu_variants.py, and how far they are from the executor
"""

import argparse
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gpu_augment import captured, copying
from torch import Tensor

from sslpipe.device.ragged import Ragged
from sslpipe.modalities.image.decider import ImageDecider
from sslpipe.modalities.image.draws import Policy
from sslpipe.modalities.image.executors import kornia, run_prepared
from sslpipe.modalities.image.executors import triton as executor
from sslpipe.recipe import find_recipe, load_recipe
from sslpipe.rng import Place

ROOT = Path(__file__).parents[2]
CUDA, HALF = torch.device("cuda"), torch.bfloat16
CHECKED = ("simclr", "dino global", "rotation")  # the GPU tests check all, in float32
IMAGES, SHAPE = 256, (375, 500)
TILES = ((16, 32, 4), (8, 32, 4), (16, 16, 2), (16, 32, 2), (8, 64, 4), (16, 64, 4), (8, 128, 4))
FLATS = ((512, 4), (1024, 4), (2048, 8))
LIMITS = (1 << 25, 1 << 26, 1 << 27, 1 << 28, 1 << 30)
Kernel = dict[str, int]


def kernel(tall: int, wide: int, warps: int = 4, **constants: int) -> Kernel:
    """The constants of one."""
    return {"TALL": tall, "WIDE": wide, "num_warps": warps, **constants}


FUSED: tuple[dict[str, Kernel], ...] = (  # by kernel, which have others in gpu_variants.py
    {"across_by": kernel(64, 32, CHUNK=16)},
    {"across_by": kernel(64, 32, CHUNK=32)},
    {"across_by": kernel(32, 32, CHUNK=16)},
    {"down_by": kernel(16, 64, CHUNK=32)},
    {"down_by": kernel(16, 32, CHUNK=32)},
    {"blur_by": kernel(64, 32, CHUNK=32, PLANES=1)},
    {"blur_by": kernel(64, 32, CHUNK=32, PLANES=3)},
    {"blur_by": kernel(32, 32, CHUNK=32, PLANES=1)},
    {
        "across_by": kernel(64, 32, CHUNK=16),
        "down_by": kernel(16, 64, CHUNK=32),
        "blur_by": kernel(64, 32, CHUNK=32, PLANES=1),
    },
)
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """A view group of a recipe with its table for all canvases."""

    name: str
    policy: Policy
    table: Any

    @property
    def views(self) -> int:
        return self.table.shape[0] * self.table.shape[1]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=55)
    options.add_argument("--parts", default=",".join(PARTS))
    options.add_argument(
        "--compile", action="store_true", help="print nothing: fill Triton's cache"
    )
    chosen, start = options.parse_args(), time.perf_counter()
    parts = chosen.parts.split(",")
    helpers = [] if chosen.compile else compiling(parts)
    canvases = photos()
    made = cases(canvases)
    for part in parts:
        if part != "parity":  # nothing else may run beside what is timed
            for helper in helpers:
                helper.wait()
        rows = PARTS[part](made, canvases)
        while time.perf_counter() - start < chosen.seconds:
            row = next(rows, None)
            if row is None:
                break
            row["at_s"] = round(time.perf_counter() - start, 1)
            if not chosen.compile:
                print(json.dumps({"part": part, **row}), flush=True)


def compiling(parts: list[str]) -> list["subprocess.Popen[bytes]"]:
    """Start a process per part that compiles its kernels, while parity is looked at."""
    command = [sys.executable, __file__, "--compile", "--seconds", "25", "--parts"]
    return [
        subprocess.Popen([*command, part], stdout=subprocess.DEVNULL)
        for part in parts
        if part in ("times", "tune", "fused")
    ]


def photos(count: int = IMAGES, shape: tuple[int, int] = SHAPE, device: Any = CUDA) -> Ragged:
    """Smooth random pictures with some noise, of one size, in one buffer on the device."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 12, 16, generator=generator).to(device)
    smooth = F.interpolate(coarse, shape, mode="bicubic").clamp(0, 1)
    levels = (smooth * 240 + 15 * torch.rand_like(smooth)).to(torch.uint8)
    return Ragged.of(list(levels.permute(0, 2, 3, 1).contiguous()))


def cases(canvases: Ragged) -> list[Case]:
    """SimCLR's group and DINO's two."""
    uids, found = np.arange(len(canvases), dtype=np.int64), []
    for name in ("simclr", "dino"):
        made = ImageDecider(load_recipe(find_recipe(name)).views, {}, {}, seed=0)
        place = Place(0, uids, len(uids))
        sides = canvases.shapes_BD[:, :2]
        tables = made.decide(epochs=uids * 0, uids=uids, place=place, extents=sides).params
        found += [Case(f"{name} {k}", p, tables[k]) for k, p in made.policies.items()]
    return found


def attempt(row: Row, measure: Callable[[], Row]) -> Row:
    """The row with what was measured, or with the error."""
    try:
        return {**row, **measure()}
    except Exception as error:  # the next row is to come
        return {**row, "error": repr(error).splitlines()[0][:300]}


def parity(made: list[Case], canvases: Ragged) -> Iterator[Row]:
    torch.backends.cudnn.allow_tf32 = False  # the reference blurs by a convolution: 0.4 levels off
    sys.path.insert(0, str(ROOT))
    from tests.modalities.image.test_compiled import CHAINS, decided
    from tests.modalities.image.test_compiled import photos as noise

    for name in CHECKED:
        count, ops = CHAINS[name]
        group, table = decided(ops, noise(), count=count)
        want = kornia.execute(group, noise(), table, device=CUDA)
        for dtype in (torch.float32, HALF):

            def measure(group=group, table=table, want=want, dtype=dtype) -> Row:
                got = run_prepared(
                    executor.prepare, group, noise(), table, device=CUDA, dtype=dtype
                )
                return apart(got, want, group)

            yield attempt({"chain": name, "dtype": str(dtype)}, measure)


def apart(got: Tensor, want: Tensor, policy: Policy) -> Row:
    """Levels between views, Normalize undone."""
    scale = 255 * torch.tensor(executor.normalisation(policy)[3:], device=got.device)
    off = (got.float() - want.float()).abs() * scale[:, None, None]
    return {"most_levels": off.max().item(), "mean_levels": off.mean().item()}


def times(made: list[Case], canvases: Ragged) -> Iterator[Row]:
    for case in made:
        given = (case.policy, canvases, case.table)
        make = executor.prepare(*given, device=CUDA, dtype=HALF)
        yield attempt({"case": case.name, "what": "copy"}, lambda c=case, g=given: {
            "us": replayed(copying(*g, CUDA)) / c.views
        })  # fmt: skip
        yield attempt({"case": case.name, "what": "triton"}, lambda c=case, m=make: {
            "us": replayed(m) / c.views, "peak_mb": peak(m)
        })  # fmt: skip
        yield from profile(case, make)


def peak(make: Callable[[], Tensor]) -> float:
    """MB that a call takes at most, its views included."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    make()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def replayed(make: Callable[[], object], repeats: int = 20) -> float:
    """The median time of a replayed graph of it, in us."""
    replay = captured(make)
    took = []
    for _ in range(repeats + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        replay()
        end.record()
        torch.cuda.synchronize()
        took.append(1e3 * begin.elapsed_time(end))
    return median(took[3:])


def profile(case: Case, make: Callable[[], Tensor]) -> Iterator[Row]:
    """A row per kernel, us per view."""
    kinds = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as seen:
        for _ in range(3):
            make()
        torch.cuda.synchronize()
    for event in seen.key_averages():
        us = event.device_time_total / 3 / case.views
        yield {"case": case.name, "kernel": event.key[:40], "us": us, "calls": event.count / 3}


def host(made: list[Case], canvases: Ragged) -> Iterator[Row]:
    for case in made:

        def once(case: Case = case) -> float:
            torch.cuda.synchronize()
            start = time.perf_counter()
            run_prepared(
                executor.prepare, case.policy, canvases, case.table, device=CUDA, dtype=HALF
            )
            return 1e3 * (time.perf_counter() - start)

        took = [once() for _ in range(23)][3:]
        yield {"case": case.name, "host_ms": median(took), "host_ms_most": max(took)}


def tune(made: list[Case], canvases: Ragged) -> Iterator[Row]:
    """SimCLR and DINO's small views; the executor's own constants are set and put back."""
    simclr, _, local = made
    for limit in LIMITS:
        yield tuned(simclr, canvases, {"SCRATCH": limit})
    for tall, wide, warps in TILES:
        yield tuned(simclr, canvases, {"TILE": {"TALL": tall, "WIDE": wide}, "WARPS": warps})
    for flat, warps in FLATS:
        yield tuned(simclr, canvases, {"FLAT": flat, "WARPS": warps})
    for tall, wide, warps in TILES[:3]:
        yield tuned(local, canvases, {"TILE": {"TALL": tall, "WIDE": wide}, "WARPS": warps})


def tuned(case: Case, canvases: Ragged, settings: dict[str, Any]) -> Row:
    """The time with these constants, and kernel by kernel."""
    before = {name: vars(executor)[name] for name in settings}
    vars(executor).update(settings)
    try:

        def measure() -> Row:
            make = executor.prepare(case.policy, canvases, case.table, device=CUDA, dtype=HALF)
            kernels = {row["kernel"]: round(row["us"], 3) for row in profile(case, make)}
            return {"us": replayed(make) / case.views, "kernels": kernels}

        return attempt({"case": case.name, **settings}, measure)
    finally:
        vars(executor).update(before)


def fused(made: list[Case], canvases: Ragged) -> Iterator[Row]:
    import gpu_variants

    for case, constants in itertools.product((made[0], made[2]), FUSED):
        given = (case.policy, canvases, case.table)
        want = executor.prepare(*given, device=CUDA, dtype=torch.float32)()

        def measure(given=given, case=case, want=want, constants=constants) -> Row:
            make = gpu_variants.prepare(*given, device=CUDA, dtype=HALF, **constants)
            row = apart(make(), want, case.policy)
            kernels = {r["kernel"]: round(r["us"], 3) for r in profile(case, make)}
            return {"us": replayed(make) / case.views, **row, "kernels": kernels}

        yield attempt({"case": case.name, **constants}, measure)


PARTS = {"parity": parity, "times": times, "host": host, "tune": tune, "fused": fused}

if __name__ == "__main__":
    main()
