"""What augmentation costs: our executors and our loader against their peers, in one run.

    python tools/bench/augment.py [--images 64] [--rounds 5] [--cases augment,module,simclr,crop]
                                  [--corpus 2000] [--device cpu] [--folder /tmp/sslpipe-bench]

augment  two SimCLR views of 224 px of each of --images decoded pictures of 500 x 375, no decoding;
         cases in augment_peers.py. Each round runs all cases after each other on the same images;
         the ratios are medians over rounds, in wall and in CPU time (steadier on a shared machine).
module   the same of `sslpipe.augment.Augment` beside Kornia's containers, as people use them: uint8
         batch, made float, two calls; Augment has one thread, so compare CPU time.
simclr   JPEG bytes -> two views, a whole pass over --corpus images, start of workers included;
         cases in loader_peers.py, every run in a process of its own.
crop     the same for decoding, one RandomResizedCrop of 224 px and a flip.

The peak memory of the last two is of one more pass before the others, which is not timed: to ask
for it takes CPU, more of those who have more processes and pages.

On CUDA the pictures lie on the device beforehand, and three columns are added: host ms per batch
(until the call returns), device us per view, and the MB per view that the device could have copied
in that time against the floor: each crop read once, each view written once as float32.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import augment_peers
import numpy as np
import torch
from augment_peers import BASELINE, Builder, Images, Skip, Work, images_of, simclr_decider
from memory import peak_memory, tree_memory
from provenance import ROOT, row, write_corpus
from rich.console import Console
from rich.table import Table

from sslpipe.device.handoff import settle
from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.rng import Place
from sslpipe.shards import PackSettings, pack

Rounds = Mapping[str, Sequence["Cost"]]
Columns = Mapping[str, Sequence[str]]  # head -> a cell per case
LOADERS = {
    "simclr": ("simclr sslpipe", "simclr webdataset + PIL", "simclr ImageFolder + PIL"),
    "crop": (
        "crop sslpipe", "crop webdataset + simplejpeg + cv2",
        "crop ImageFolder + decode_jpeg + v2", "crop webdataset + PIL",
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cost:
    """Of `units` views or images; times in seconds, memory in MB."""

    units: int
    wall: float
    cpu: float
    host: float  # until the call returned
    memory: float

    @property
    def rate(self) -> float:
        return self.units / self.wall

    @property
    def cpu_ms(self) -> float:
        return self.cpu / self.units * 1e3


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--images", type=int, default=64)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--cases", default="augment,simclr,crop")
    options.add_argument("--corpus", type=int, default=2000)
    options.add_argument("--device", default="cpu")
    options.add_argument("--folder", type=Path, default=Path("/tmp/sslpipe-bench"))
    chosen = options.parse_args()
    console, said = Console(width=150), []
    for case in chosen.cases.split(","):
        if case in ("augment", "module"):
            cases = augment_peers.CASES if case == "augment" else augment_peers.MODULES
            table, figures = augment(chosen, torch.device(chosen.device), cases)
        else:
            table, figures = loaders(case, chosen)
        console.print(table)
        said.append(figures)
    console.print(row("; ".join(said), "kornia", "torchvision", "webdataset"), soft_wrap=True)


def augment(
    chosen: argparse.Namespace, device: torch.device, cases: Mapping[str, Builder]
) -> tuple[Table, str]:
    """Measure the cases that start from decoded images."""
    corpus = write_corpus(chosen.folder / f"jpeg-{chosen.corpus}", chosen.corpus)
    paths = sorted(corpus.rglob("*.jpg"))[: chosen.images]
    images = images_of([path.read_bytes() for path in paths], device)
    works, skipped, memory = {}, {}, {}
    for name, build in cases.items():
        try:
            if device.type != "cpu" and name in augment_peers.ON_CPU_ONLY:
                raise Skip("makes its views on the CPU")
            works[name] = build(images, device)
            memory[name] = peak_memory(works[name], device)
        except (Skip, ImportError, RuntimeError) as reason:
            works.pop(name, None)
            skipped[name] = (str(reason) or repr(reason)).splitlines()[0]
    rounds: dict[str, list[Cost]] = {name: [] for name in works}
    for _ in range(chosen.rounds):
        for name, work in works.items():
            rounds[name].append(timed(work, 2 * len(paths), memory[name], device))
    title = f"two SimCLR views of 224 px, {len(paths)} pictures of 500 x 375, on {device.type}"
    more = device_columns(rounds, images, device) if device.type == "cuda" else {}
    table = summary(title, "views", rounds, skipped, BASELINE, more)
    return table, f"{title}: {figures(rounds, BASELINE, 'views')}"


def timed(work: Work, units: int, memory: float, device: torch.device) -> Cost:
    """Time one call."""
    settle(device)
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    host = time.perf_counter() - wall
    settle(device)
    return Cost(units, time.perf_counter() - wall, time.process_time() - cpu, host, memory)


def copy_speed(device: torch.device) -> float:
    """Bytes/s that the device reads and writes in a plain copy."""
    source = torch.empty(2**30, dtype=torch.uint8, device=device)
    target, best = torch.empty_like(source), 0.0
    for _ in range(5):
        settle(device)
        start = time.perf_counter()
        target.copy_(source)
        settle(device)
        best = max(best, 2 * source.nbytes / (time.perf_counter() - start))
    return best


def floor_bytes(canvases: Sequence[torch.Tensor]) -> float:
    """Per view: the crops of a drawn table as bytes, and the view as float32."""
    decider = simclr_decider()
    count = len(canvases)
    sizes_B2 = np.array([canvas.shape[:2] for canvas in canvases], dtype=np.int64)
    uids = np.arange(count, dtype=np.int64)
    place = Place(0, uids, count)
    tables = decider.decide(epochs=uids * 0, uids=uids, place=place, extents=sizes_B2)
    boxes = tables.params["global"][..., decider.policies["global"].steps[0].columns]
    return float(3 * (boxes[..., 2] * boxes[..., 3]).mean() + 4 * 3 * augment_peers.SIZE**2)


def device_columns(rounds: Rounds, images: Images, device: torch.device) -> Columns:
    """Host ms per batch, device us per view, and copyable MB per view over the floor."""
    speed, floor = copy_speed(device), floor_bytes(images.canvases)
    seconds = [median(c.wall / c.units for c in costs) for costs in rounds.values()]
    copied = [view * speed for view in seconds]
    return {
        "host ms/batch": [
            f"{median(c.host for c in costs) * 1e3:.2f}" for costs in rounds.values()
        ],
        "us/view": [f"{view * 1e6:.2f}" for view in seconds],
        "copyable MB/view": [f"{size / 1e6:.2f} ({size / floor:.1f} x floor)" for size in copied],
    }


def loaders(case: str, chosen: argparse.Namespace) -> tuple[Table, str]:
    """The cases from JPEG bytes, each run in a process of its own."""
    corpus = write_corpus(chosen.folder / f"jpeg-{chosen.corpus}", chosen.corpus)
    shards = packed(corpus, chosen.folder / f"loader-shards-{chosen.corpus}")
    peaks = {name: peak_of(name, corpus, shards) for name in LOADERS[case]}
    rounds: dict[str, list[Cost]] = {name: [] for name in LOADERS[case]}
    skipped: dict[str, str] = {}
    for _ in range(chosen.rounds):
        for name in LOADERS[case]:
            if name in skipped:
                continue
            cost = run_loader(name, corpus, shards, memory=peaks[name])
            if isinstance(cost, str):
                skipped[name] = cost
            else:
                rounds[name].append(cost)
    rounds = {name: costs for name, costs in rounds.items() if costs}
    baseline = next(name for name in LOADERS[case][1:] if name in rounds)
    title = f"{case}: one pass over {chosen.corpus} JPEGs of 500 x 375, workers started within"
    table = summary(title, "images", rounds, skipped, baseline)
    return table, f"{title}: {figures(rounds, baseline, 'img')}"


def packed(corpus: Path, shards: Path) -> Path:
    """The corpus in four shards per core: webdataset deals whole shards to its workers."""
    if not (shards / "manifest.json").exists():
        sizes = [path.stat().st_size + 2048 for path in corpus.rglob("*.jpg")]  # 2 tar headers
        each = sum(sizes) // (4 * len(os.sched_getaffinity(0))) + max(sizes)
        pack(corpus, shards, PackSettings(codec=ImageCodec(), name="corpus", shard_bytes=each))
    return shards


def started(name: str, corpus: Path, shards: Path) -> subprocess.Popen[str]:
    """A process that does one pass."""
    command = [sys.executable, ROOT / "tools" / "bench" / "loader_peers.py", name, corpus, shards]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"},
    )


def peak_of(name: str, corpus: Path, shards: Path) -> float:
    """MB that all processes of a pass take at most; asked for too often for it to be timed."""
    peak = 0.0
    with started(name, corpus, shards) as child:
        while child.poll() is None:
            peak = max(peak, tree_memory(child.pid))
            time.sleep(0.1)
    return peak


def run_loader(name: str, corpus: Path, shards: Path, *, memory: float) -> Cost | str:
    """One pass; or why it cannot run."""
    with started(name, corpus, shards) as child:
        out, errors = child.communicate()
    if child.returncode:
        return (errors.strip().splitlines() or [f"exit status {child.returncode}"])[-1]
    said = json.loads(out)
    if "skipped" in said:
        return str(said["skipped"])
    return Cost(said["images"], said["wall"], said["cpu"], said["wall"], memory)


def summary(
    title: str,
    unit: str,
    rounds: Rounds,
    skipped: Mapping[str, str],
    baseline: str,
    more: Columns = MappingProxyType({}),
) -> Table:
    """One line per case; skipped ones say why below the table."""
    why = [f"skipped {name}: {reason}" for name, reason in skipped.items()]
    table = Table(title=f"{title}; x = {baseline}", caption="\n".join(why))
    table.add_column("case")
    heads = (f"CPU-ms/{unit[:-1]}", f"{unit}/s", "x wall", "x CPU", "peak MB", *more)
    for head in heads:
        table.add_column(head, justify="right")
    for place, (name, costs) in enumerate(rounds.items()):
        table.add_row(
            name,
            f"{median(c.cpu_ms for c in costs):.2f}",
            f"{median(c.rate for c in costs):,.0f}",
            f"{ratio(costs, rounds[baseline], lambda c: c.rate):.2f}",
            f"{ratio(rounds[baseline], costs, lambda c: c.cpu_ms):.2f}",
            f"{max(c.memory for c in costs):,.0f}",
            *(column[place] for column in more.values()),
        )
    return table


def figures(rounds: Rounds, baseline: str, unit: str) -> str:
    """The table as one sentence, for BENCHMARKS.md."""
    return (
        ", ".join(
            f"{name} {median(c.rate for c in costs):,.0f} {unit}/s "
            f"({median(c.cpu_ms for c in costs):.2f} CPU-ms, "
            f"{ratio(costs, rounds[baseline], lambda c: c.rate):.2f} x)"
            for name, costs in rounds.items()
        )
        + f", x = {baseline}"
    )


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def ratio(ours: Sequence[Cost], theirs: Sequence[Cost], of: Callable[[Cost], float]) -> float:
    """Median over rounds of the paired ratios."""
    return median(of(a) / of(b) for a, b in zip(ours, theirs, strict=True))


if __name__ == "__main__":
    main()
