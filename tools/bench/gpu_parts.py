"""The parts of gpu_check. Each runs in a process of its own, within its seconds, whatever becomes
of the others; its output goes to FOLDER/PART.txt and its rows to FOLDER/rows.jsonl, as they come.

    python tools/bench/gpu_parts.py FOLDER [--parts kernels,wall] [--dry]

kernels     gpu_kernels.py: parity, us per view, host time, tunables
tests       pytest -m "gpu and not slow"
modalities  gpu_modalities.py: sound, tasks of text and clips as on the CPU, us per sample; a few
            steps of small recipes in bf16
wall        end to end against a step on a batch at hand: ResNet-50 at 224 px, ResNet-18 at 32 px,
            decoded on the CPU and on the GPU
decode      TorchCodec's lists against the CPU's threads, and how far their pixels are apart
views       our executors on SimCLR 2 x 224 of 256 canvases, bfloat16, upload included
compiled    the same of the compiled executor, which compiles for a minute
augment     on request: the CUDA columns of augment.py, against the peers
attention   on request: gpu_attention.py, attention that knows documents against what encoders do
slow_tests  on request: what compiles, and 10,000 batches
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

ROOT = Path(__file__).parents[2]
Row = dict[str, Any]
LIMITS: Mapping[str, int] = MappingProxyType({  # seconds; 480 of those that run unasked
    "kernels": 70, "tests": 80, "modalities": 60, "wall": 120, "decode": 35, "views": 40,
    "compiled": 75,
    "augment": 100, "slow_tests": 200, "attention": 150,
})  # fmt: skip
ON_REQUEST = ("augment", "slow_tests", "attention")
VERDICTS = ("PASSED", "FAILED", "ERROR", "SKIPPED")


@dataclass(frozen=True, slots=True)
class Size:
    """Says on which device, with how much data and how often everything is measured."""

    device: str
    images: int
    repeats: int
    corpus: int
    recipe: str  # of the views
    walls: Mapping[str, int]  # recipe -> side of its images in pixels, 0: photos
    decoders: tuple[str, ...]
    seconds: float  # of a stage


WALLS = MappingProxyType({"simclr": 0, "simclr_cifar": 32})
FULL = Size("cuda", 256, 50, 1024, "simclr", WALLS, ("cpu", "cuda"), 3.0)
DRY = Size("cpu", 2, 2, 6, "simclr_cifar", MappingProxyType({"demo": 0}), ("cpu",), 0.1)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("folder", type=Path)
    unasked = ",".join(part for part in LIMITS if part not in ON_REQUEST)
    options.add_argument("--parts", default=unasked)
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
    """Run a part in its process, write and show what it says, and say whether it ended well."""
    start, rows = time.perf_counter(), 0
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        command_of(part, chosen), cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    late = threading.Event()
    alarm = threading.Timer(LIMITS[part], stop, (process, late))
    alarm.start()
    assert process.stdout is not None
    with (chosen.folder / f"{part}.txt").open("w") as log:
        for line in process.stdout:
            print(line, end="", file=log, flush=True)
            rows += show(line, chosen.folder)
    process.wait()
    alarm.cancel()
    state = "done" if process.returncode == 0 else f"exit status {process.returncode}"
    state = f"stopped after {LIMITS[part]} s" if late.is_set() else state
    print(f"{part}: {state}, {rows} rows, {time.perf_counter() - start:.0f} s", flush=True)
    return state == "done"


def stop(process: "subprocess.Popen[str]", late: threading.Event) -> None:
    """End a process and its children."""
    late.set()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def show(line: str, folder: Path) -> bool:
    """Print rows and verdicts of tests; keep a row, and say whether the line is one."""
    row = line.startswith('{"part"')
    if row or any(word in line for word in VERDICTS):
        print(line, end="", flush=True)
    if row:
        with (folder / "rows.jsonl").open("a") as file:
            file.write(line)
    return row


def command_of(part: str, chosen: argparse.Namespace) -> list[str]:
    """Return the command that runs a part."""
    if part in MEASURED:
        here = ["--here", *(["--dry"] if chosen.dry else [])]
        return [sys.executable, __file__, str(chosen.folder), "--parts", part, *here]
    if part == "kernels":
        seconds = ["--seconds", str(LIMITS[part] - 20)]
        return [sys.executable, str(ROOT / "tools" / "bench" / "gpu_kernels.py"), *seconds]
    if part == "attention":
        dry = ["--device", "cpu", "--dry"] if chosen.dry else []
        script = str(ROOT / "tools" / "bench" / "gpu_attention.py")
        return [sys.executable, script, "--out", str(chosen.folder.resolve()), *dry]
    if part == "augment":
        script = str(ROOT / "tools" / "bench" / "augment.py")
        sizes = ["--images", "256", "--corpus", "256", "--rounds", "3", "--device", "cuda"]
        return [sys.executable, script, "--cases", "augment", *sizes]
    which = "gpu and slow" if part == "slow_tests" else "gpu and not slow"
    report = str(chosen.folder.resolve() / f"{part}.xml")
    # other people's plugins announce themselves by warnings, which are errors here
    plugins = ["-p", "no:benchmark", "-p", "no:xdist"]
    options = ["-v", "-m", which, "--durations", "10", "--junit-xml", report]
    return [sys.executable, "-m", "pytest", *plugins, *options, *gpu_tests()]


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


def views(size: Size) -> Iterator[Row]:
    """Per contender but the compiled ones."""
    return contending(size, lambda name: not name.startswith("compiled"))


def compiled(size: Size) -> Iterator[Row]:
    """Per contender that compiles first."""
    return contending(size, lambda name: name.startswith("compiled"))


def contending(size: Size, chosen: Callable[[str], bool]) -> Iterator[Row]:
    """Per group and chosen contender."""
    import gpu_augment
    import numpy as np
    import torch
    from gpu_wall import jpegs

    from sslpipe.modalities.image.decider import ImageDecider
    from sslpipe.modalities.image.decode import decode
    from sslpipe.recipe import find_recipe, load_recipe
    from sslpipe.rng import Place

    device = torch.device(size.device)
    canvases = [torch.from_numpy(decode(data)) for data in jpegs(size.images)]
    uids = np.arange(len(canvases), dtype=np.int64)
    sides = np.array([canvas.shape[:2] for canvas in canvases], dtype=np.int64)
    made = ImageDecider(load_recipe(find_recipe(size.recipe)).views, {}, {}, seed=0)
    place = Place(0, uids, len(uids))
    tables = made.decide(epochs=uids * 0, uids=uids, place=place, extents=sides).params
    for group, policy in made.policies.items():
        built = gpu_augment.contenders(policy, canvases, tables[group], device=device)
        count = policy.count * len(canvases)

        def measure(build: gpu_augment.Builder, count: int = count) -> Row:
            took = gpu_augment.timed(build(), device=device, repeats=size.repeats)
            return {**took, "views": count, "us_per_view": 1e3 * took["done_ms"] / count}

        cases = {k: lambda b=b: measure(b) for k, b in built.items() if chosen(k)}
        yield from attempts({f"{size.recipe} {group} {k}": case for k, case in cases.items()})


def wall(size: Size) -> Iterator[Row]:
    """Per recipe and decoder: what `sslpipe bench` says, and end to end over the step alone."""
    from gpu_wall import packed, staged

    batch = size.images if size.device == "cpu" else None
    for recipe, side in size.walls.items():
        with tempfile.TemporaryDirectory() as folder:
            shards = packed(Path(folder), size.corpus, side)

            def measure(decoder: str, recipe: str = recipe, shards: Path = shards) -> Row:
                return staged(recipe, decoder, shards, size.device, size.seconds, batch)

            yield from attempts({
                f"{recipe}, decoded on {decoder}": partial(measure, decoder)
                for decoder in size.decoders
            })  # fmt: skip


def decode(size: Size) -> Iterator[Row]:
    """Images/s of the device and of the CPU, and how far apart their pixels are."""
    import torch
    from gpu_decoding import decoders

    yield from attempts(decoders(torch.device(size.device), size.images, size.repeats))


def modalities(size: Size) -> Iterator[Row]:
    """Per chain of ops that is compared with the CPU, then per recipe that takes some steps."""
    import torch
    from gpu_modalities import like, training

    device, batch = torch.device(size.device), min(size.images, 32)
    yield from attempts(dict(like(device, batch, size.repeats)))
    yield from attempts(dict(training(device, batch)))


MEASURED: Mapping[str, Callable[[Size], Iterator[Row]]] = MappingProxyType({
    "modalities": modalities, "wall": wall, "decode": decode, "views": views,
    "compiled": compiled,
})  # fmt: skip

if __name__ == "__main__":
    main()
