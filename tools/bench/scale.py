"""How loading scales with workers, and what a sample costs the main process; one JSON line per row.

    python tools/bench/scale.py [--images 6144] [--seconds 3]

sleep     a decoder that sleeps 1.3 ms: samples/s against workers / 1.3 ms, as if cores were many
decode    JPEGs of 32 px with 2 workers and with none: samples/s and CPU us in the main process
main      the main process's CPU us a sample to load and decide two views of SimCLR, with as many
          workers as cores: at 224 px of photos of 500 x 375, at 32 px of the JPEGs above
beside    a loop of pure Python while 4 workers sleep, against the loop alone, by turns: how much
          slower, the median of five
"""

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

import sslpipe
from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.recipe import parse_recipe
from sslpipe.shards import PackSettings, pack

sys.path.insert(0, str(Path(__file__).parent))
from provenance import write_corpus
from sleeping import SECONDS

Row = dict[str, Any]
RECIPE = """
modality: MODALITY
stream: {batch_size: 512}
views:
  global:
    ops: [RandomCrop: {size: [32, 32], padding: 4}]
run: {workers: WORKERS}
"""
PHOTOS = 1024
PAIRS = 5
WARM = 0.3  # seconds a worker before the clock starts: all start, and slots are touched


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--images", type=int, default=6144)
    options.add_argument("--seconds", type=float, default=3)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shards = corpus(Path(folder), chosen.images)
        cases = sleep, decode, main_process, beside
        for row in chain.from_iterable(case(shards, chosen.seconds) for case in cases):
            print(json.dumps(row), flush=True)


def corpus(folder: Path, count: int) -> Path:
    """JPEGs of smooth colours and noise, 32 px, about 1 kB, packed."""
    rng = np.random.default_rng(0)
    for number in range(count):
        place = folder / "in" / f"class{number % 10}"
        place.mkdir(parents=True, exist_ok=True)
        ramp = np.linspace(0, 1, 32)[:, None, None] * rng.uniform(0, 200, 3)
        pixels = (ramp + rng.uniform(0, 55, (32, 32, 3))).astype(np.uint8)
        data = simplejpeg.encode_jpeg(pixels, quality=90, colorspace="RGB")
        (place / f"{number:06d}.jpg").write_bytes(data)
    pack(folder / "in", folder / "out", PackSettings(codec=ImageCodec(), shard_bytes=2_000_000))
    return folder / "out"


def opened(shards: Path, workers: int, modality: str = "image") -> sslpipe.Pipeline:
    text = RECIPE.replace("MODALITY", modality).replace("WORKERS", str(workers))
    recipe = parse_recipe(text, path="scale.yaml")
    return sslpipe.load(recipe, shards=shards, device="cpu", rank=0, world_size=1)


def loading(pipe: sslpipe.Pipeline, seconds: float, *, decide: bool = False) -> Row:
    """Samples/s of shares that follow each other, and the main process's CPU time of each."""
    warm = loaded(pipe, 0, 1 + WARM * pipe.workers, decide)
    start, cpu = time.perf_counter(), time.process_time()
    samples = (loaded(pipe, warm, seconds, decide) - warm) * pipe.spec.size
    took, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {"samples_s": round(samples / took), "main_us": round(1e6 * cpu / samples, 2)}


def loaded(pipe: sslpipe.Pipeline, step: int, seconds: float, decide: bool) -> int:
    """Load shares from a step on for a while, and decide their tables; the step that comes next."""
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        share = pipe.loading.load_ahead(step)
        if decide:
            pipe.decide(share, step, length=0)
        step += 1
    return step


def sleep(shards: Path, seconds: float) -> Iterator[Row]:
    for workers in (1, 2, 4, 8, 16, 32):
        with opened(shards, workers, "sleeping:Sleeping") as pipe:
            row = loading(pipe, seconds)
        ideal = workers / SECONDS
        yield {"case": "sleep", "workers": workers, **row, "of_ideal": row["samples_s"] / ideal}


def decode(shards: Path, seconds: float) -> Iterator[Row]:
    for workers in (0, 2):
        with opened(shards, workers) as pipe:
            yield {"case": "decode", "workers": workers, **loading(pipe, seconds)}


def main_process(shards: Path, seconds: float) -> Iterator[Row]:
    """At 224 and at 32 px, by recipes as they ship."""
    with tempfile.TemporaryDirectory() as folder:
        photos = write_corpus(Path(folder) / "in", PHOTOS)
        pack(photos, Path(folder) / "out", PackSettings(codec=ImageCodec()))
        for name, packed in (("simclr", Path(folder) / "out"), ("simclr_cifar", shards)):
            with sslpipe.load(name, shards=packed, device="cpu", rank=0, world_size=1) as pipe:
                row = loading(pipe, seconds, decide=True)
                yield {"case": "main", "recipe": name, "workers": pipe.workers, **row}


def beside(shards: Path, seconds: float) -> Iterator[Row]:
    """The loop beside the loading and alone by turns; workers need no core: what the lock costs."""
    with opened(shards, 4, "sleeping:Sleeping") as pipe:
        loading, ended = threading.Event(), threading.Event()

        def load() -> None:
            for step in count():
                loading.wait()
                if ended.is_set():
                    return
                pipe.loading.load_ahead(step)

        thread = threading.Thread(target=load)
        thread.start()
        found = []
        for _ in range(PAIRS):
            loading.set()
            time.sleep(1)
            rate = counted(seconds)
            loading.clear()
            time.sleep(1)
            found.append(1 - rate / counted(seconds))
        ended.set()
        loading.set()
        thread.join()
    rounded = [round(each, 3) for each in sorted(found)]
    yield {"case": "beside", "workers": 4, "slower": statistics.median(rounded), "all": rounded}


def counted(seconds: float) -> float:
    """Turns of a loop of pure Python per second of wall clock."""
    turns, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        turns += sum(range(100)) > 0
    return turns / seconds


if __name__ == "__main__":
    main()
