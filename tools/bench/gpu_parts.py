"""The parts of gpu_check. Each runs in a process of its own, within its seconds, whatever becomes
of the others; its output goes to FOLDER/PART.txt and its rows to FOLDER/rows.jsonl.

    python tools/bench/gpu_parts.py FOLDER [--parts views,decode] [--dry]

tests       pytest -m "gpu and not slow"           slow_tests  compiling, and 10,000 batches
views       our executors: SimCLR 2 x 224 and DINO 2 x 224 + 8 x 96 of 256 canvases, bfloat16
step        a SimCLR step of a ResNet-50 on the pipeline's batches, over one on a batch at hand
decode      TorchCodec's lists against the CPU's threads, and how far their pixels are apart
augment     the CUDA columns of augment.py, against the peers
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

ROOT = Path(__file__).parents[2]
Row = dict[str, Any]
LIMITS: Mapping[str, int] = MappingProxyType({  # seconds; 590 in all
    "tests": 90, "views": 120, "step": 90, "decode": 50, "augment": 90, "slow_tests": 150,
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Size:
    """Says on which device, with how much data and how often everything is measured."""

    device: str
    images: int
    repeats: int
    corpus: int
    recipes: tuple[str, ...]  # of the views
    recipe: str  # of the step
    executors: tuple[str, ...]  # of the step


FULL = Size("cuda", 256, 50, 1024, ("simclr", "dino"), "simclr", ("kornia", "compiled", "triton"))
DRY = Size("cpu", 2, 2, 6, ("dino_cifar",), "demo", ("kornia",))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("folder", type=Path)
    options.add_argument("--parts", default=",".join(LIMITS))
    options.add_argument("--dry", action="store_true")
    options.add_argument("--here", action="store_true", help="run the part in this process")
    chosen = options.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    if chosen.here:
        for row in MEASURED[chosen.parts](DRY if chosen.dry else FULL):
            print(json.dumps({"part": chosen.parts, **row}), flush=True)
        return
    describe(chosen.folder)
    failed = [part for part in chosen.parts.split(",") if not run(part, chosen)]
    print(f"failed: {', '.join(failed) or 'none'}; see {chosen.folder}")
    sys.exit(bool(failed))


def describe(folder: Path) -> None:
    """Write commit, device and packages to FOLDER/machine.txt."""
    commands = (
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"],
        ["nvidia-smi"],
        [sys.executable, "-m", "pip", "list"],
    )
    with (folder / "machine.txt").open("w") as file:
        for command in commands:
            try:
                subprocess.run(command, stdout=file, stderr=file, check=False)
            except OSError as error:
                file.write(f"{command[0]}: {error}\n")
            file.flush()


def run(part: str, chosen: argparse.Namespace) -> bool:
    """Run a part in its process, and say whether it ended well."""
    log, start = chosen.folder / f"{part}.txt", time.perf_counter()
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with log.open("w") as file:
        try:
            done = subprocess.run(
                command_of(part, chosen), cwd=ROOT, env={**os.environ, "PYTHONPATH": path},
                stdout=file, stderr=file, check=False, timeout=LIMITS[part],
            )  # fmt: skip
            state = "done" if done.returncode == 0 else f"exit status {done.returncode}"
        except subprocess.TimeoutExpired:
            state = f"stopped after {LIMITS[part]} s"
    rows = [line for line in log.read_text().splitlines() if line.startswith('{"part"')]
    with (chosen.folder / "rows.jsonl").open("a") as file:
        file.writelines(f"{row}\n" for row in rows)
    print(f"{part}: {state}, {len(rows)} rows, {time.perf_counter() - start:.0f} s", flush=True)
    return state == "done"


def command_of(part: str, chosen: argparse.Namespace) -> list[str]:
    """Return the command that runs a part."""
    if part in MEASURED:
        here = ["--here", *(["--dry"] if chosen.dry else [])]
        return [sys.executable, __file__, str(chosen.folder), "--parts", part, *here]
    if part == "augment":
        script = str(ROOT / "tools" / "bench" / "augment.py")
        sizes = ["--images", "256", "--corpus", "256", "--rounds", "3", "--device", "cuda"]
        return [sys.executable, script, "--cases", "augment", *sizes]
    which = "gpu and slow" if part == "slow_tests" else "gpu and not slow"
    report = str(chosen.folder.resolve() / f"{part}.xml")
    options = ["-m", which, "--durations", "10", "--junit-xml", report]
    return [sys.executable, "-m", "pytest", *options, *gpu_tests()]


def gpu_tests() -> list[str]:
    """The files that hold such tests: others import packages that a borrowed machine may lack."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(file) for file in files if "mark.gpu" in file.read_text()]


def attempts(named: Mapping[str, Callable[[], Row]]) -> Iterator[Row]:
    """A row per case; one that fails says why."""
    for name, measure in named.items():
        try:
            yield {"case": name, **measure()}
        except Exception as error:  # the next case is to run
            yield {"case": name, "error": repr(error).splitlines()[0][:300]}


def jpegs(count: int) -> list[bytes]:
    """Like ImageNet's: 500 x 375, about 100 kB."""
    from provenance import write_corpus

    with tempfile.TemporaryDirectory() as folder:
        corpus = write_corpus(Path(folder), count)
        return [path.read_bytes() for path in sorted(corpus.rglob("*.jpg"))]


def views(size: Size) -> Iterator[Row]:
    """Per recipe, group and contender."""
    import gpu_augment
    import numpy as np
    import torch

    from sslpipe.modalities.image.decider import ImageDecider
    from sslpipe.modalities.image.decode import decode
    from sslpipe.recipe import find_recipe, load_recipe
    from sslpipe.rng import Place

    device = torch.device(size.device)
    canvases = [torch.from_numpy(decode(data)) for data in jpegs(size.images)]
    uids = np.arange(len(canvases), dtype=np.int64)
    sides = np.array([canvas.shape[:2] for canvas in canvases], dtype=np.int64)
    for name in size.recipes:
        groups = load_recipe(find_recipe(name)).views
        made = ImageDecider(groups, {}, {}, seed=0)
        place = Place(0, uids, len(uids))
        tables = made.decide(epochs=uids * 0, uids=uids, place=place, extents=sides).params
        for group, policy in made.policies.items():
            built = gpu_augment.contenders(policy, canvases, tables[group], device=device)
            count = policy.count * len(canvases)

            def measure(build: gpu_augment.Builder, count: int = count) -> Row:
                took = gpu_augment.timed(build(), device=device, repeats=size.repeats)
                return {**took, "views": count, "us_per_view": 1e3 * took["done_ms"] / count}

            cases = {f"{name} {group} {k}": lambda b=b: measure(b) for k, b in built.items()}
            yield from attempts(cases)


def step(size: Size) -> Iterator[Row]:
    """Per executor: a step on the pipeline's batches, and on one that is there."""
    from sslpipe.modalities.image.codec import ImageCodec
    from sslpipe.shards import PackSettings, pack

    with tempfile.TemporaryDirectory() as folder:
        photos, shards = Path(folder) / "photos", Path(folder) / "shards"
        photos.mkdir()
        for number, data in enumerate(jpegs(size.corpus)):
            (photos / f"{number:05d}.jpg").write_bytes(data)
        pack(photos, shards, PackSettings(codec=ImageCodec()))
        yield from attempts({name: lambda n=name: fed(n, shards, size) for name in size.executors})


def fed(executor: str, shards: Path, size: Size) -> Row:
    """Seconds per step of three rounds, fed and not."""
    import torch

    from sslpipe import load
    from sslpipe.bench import endless, trainer
    from sslpipe.recipe import find_recipe, load_recipe

    sizes = [f"stream.batch_size={size.images}", "stream.allow_repeats=true"]  # of few photos
    settings = [*sizes, f"run.executor={executor}"]
    recipe = load_recipe(find_recipe(size.recipe), overrides=settings)
    device = torch.device(size.device)
    with load(recipe, shards=shards, device=device, rank=0, world_size=1) as pipe:
        train, batches = trainer(pipe), endless(pipe)
        there = next(batches)
        for batch in islice(batches, 1 + size.repeats // 5):
            train(batch)
        best = {"synthetic": float("inf"), "fed": float("inf")}
        for _ in range(3):
            sources = {"synthetic": iter([there] * (size.repeats // 2)), "fed": batches}
            for name, source in sources.items():
                took = seconds(train, islice(source, size.repeats // 2), device)
                best[name] = min(best[name], took / (size.repeats // 2))
        return {
            "synthetic_ms": 1e3 * best["synthetic"],
            "fed_ms": 1e3 * best["fed"],
            "ratio": best["fed"] / best["synthetic"],
            "images_per_s": size.images / best["fed"],
            "waited_s": pipe.wait_seconds,
        }


def seconds(train: Callable[[Any], object], batches: Iterator[Any], device: Any) -> float:
    """Of all steps, until the device is done."""
    from gpu_augment import settle

    settle(device)
    start = time.perf_counter()
    for batch in batches:
        train(batch)
    settle(device)
    return time.perf_counter() - start


def decode(size: Size) -> Iterator[Row]:
    """Images/s of the device and of the CPU, and how far apart their pixels are."""
    import torch
    from gpu_augment import timed

    from sslpipe.modalities.image.canvases import CanvasDecode
    from sslpipe.modalities.image.codec import GPU_JPEG
    from sslpipe.modalities.image.decode import decode as on_cpu
    from sslpipe.modalities.image.gpu_decode import GpuDecode, TorchCodec

    device, data = torch.device(size.device), jpegs(size.images)
    threads = ThreadPoolExecutor(len(os.sched_getaffinity(0)))

    def rate(work: Callable[[], object]) -> Row:
        took = timed(work, device=device, repeats=size.repeats)
        return {**took, "images_per_s": 1e3 * len(data) / took["done_ms"]}

    def lists(side: int | None) -> Callable[[], Row]:
        def measure() -> Row:
            engine = TorchCodec(device) if size.device == "cuda" else OnCpu()
            gpu = GpuDecode(CanvasDecode(side), engine, baseline=GPU_JPEG)
            with engine.stream():
                canvases = gpu.decode(data)
            pairs = [
                (c.data.cpu().float() - torch.from_numpy(on_cpu(d, size=side))).abs()
                for c, d in zip(canvases, data, strict=True)
                if c is not None
            ]
            took = rate(lambda: gpu.decode(data))
            apart = {
                "levels_apart": float(torch.stack([pair.mean() for pair in pairs]).mean()),
                "most_levels_apart": float(torch.stack([pair.max() for pair in pairs]).max()),
            }
            return {**took, **apart, "returned": gpu.returned}

        return measure

    yield from attempts({
        "cpu threads": lambda: rate(lambda: list(threads.map(on_cpu, data))),
        "lists": lists(None),
        "lists, shrunk to 256": lists(256),
    })  # fmt: skip


class OnCpu:
    """Decodes lists as the GPU's engine does, on the CPU, for --dry."""

    def __call__(self, encoded: list[Any]) -> list[Any]:
        import torch

        from sslpipe.modalities.image.decode import decode

        return [torch.from_numpy(decode(bytes(e.numpy()))).permute(2, 0, 1) for e in encoded]

    def stream(self) -> Any:
        return nullcontext()


MEASURED: Mapping[str, Callable[[Size], Iterator[Row]]] = MappingProxyType({
    "views": views, "step": step, "decode": decode,
})  # fmt: skip

if __name__ == "__main__":
    main()
