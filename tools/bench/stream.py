"""What reading costs: our reader and decoder against the bare decoding loop and webdataset.

    python tools/bench/stream.py [--images 2000] [--rounds 5] [--folder /tmp/sslpipe-bench]

Every round runs all cases after each other on the same images in the page cache; the ratios are
medians over rounds. `bare` decodes bytes that lie in memory, with the same decoder, in a thread
for each core. Also: memory over an epoch, and start-up against the number of samples.
"""

import argparse
import resource
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import webdataset
from provenance import row, write_corpus
from rich.console import Console
from rich.table import Table

import sslpipe
from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.modalities.image.decode import decode
from sslpipe.pipeline import Pipeline
from sslpipe.process import cores
from sslpipe.recipe import Recipe, parse_recipe
from sslpipe.shards import (
    Manifest,
    PackSettings,
    Shard,
    open_manifest,
    pack,
    read_manifest,
)
from sslpipe.shards.manifest import write_manifest
from sslpipe.stream import order
from sslpipe.stream.reader import read_sample
from sslpipe.stream.records import wanted
from sslpipe.stream.tasks import READ

EPOCHS = 4  # that the reader goes over at a time, which takes about as long as webdataset's one
RECIPE = """
stream: {{batch_size: 256}}
views: {{global: {{ops: [RandomResizedCrop: {{size: [32, 32]}}]}}}}
run: {{workers: {workers}}}
"""


def recipe(workers: str = "auto") -> Recipe:
    """The stream of all cases."""
    return parse_recipe(RECIPE.format(workers=workers))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--images", type=int, default=2000)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--folder", type=Path, default=Path("/tmp/sslpipe-bench"))
    chosen = options.parse_args()
    shards = prepare(chosen.folder, chosen.images)
    with (
        sslpipe.load(recipe(), shards=shards) as pipe,
        # one process, as webdataset's is
        sslpipe.load(recipe(workers="0"), shards=shards) as single,
    ):
        cases = cases_of(pipe, single, open_manifest(shards))
        rates: dict[str, list[float]] = {name: [] for name in cases}
        by_cpu: dict[str, list[float]] = {name: [] for name in cases}  # of the thread that asks
        for _ in range(chosen.rounds):
            for name, case in cases.items():
                start, begun = time.perf_counter(), time.thread_time()
                images = case()
                rates[name].append(images / (time.perf_counter() - start))
                by_cpu[name].append(images / (time.thread_time() - begun))
    decoding = ratio(rates["reader + decoder"], rates["bare decoder"])
    reading, cpu = (ratio(each["reader"], each["webdataset"]) for each in (rates, by_cpu))
    table = Table("case", "images/s (median)")
    for name, values in rates.items():
        table.add_row(name, f"{statistics.median(values):,.0f}")
    growth, starts, opening = memory_growth(shards), start_ups(), open_100_000(chosen.folder)
    console = Console()
    console.print(table)
    figures = (
        f"reader + decoder / bare decoder: {decoding:.2f}; reader (CRC checked) / webdataset: "
        f"{reading:.1f} ({statistics.median(rates['reader']):,.0f} samples/s), by the thread's CPU "
        f"{cpu:.1f} ({statistics.median(by_cpu['reader']):,.0f} a second of it); "
        f"memory over nine epochs: {growth:+.0f} MB; first plan for "
        + ", ".join(f"1e{power} samples: {ms:.0f} ms" for power, ms in starts.items())
        + f"; manifest of 1e5 shards: {opening:.0f} ms; then {planning():.2f} us per sample"
    )
    console.print(figures)
    console.print(row(figures, "simplejpeg", "webdataset"), soft_wrap=True)


def prepare(folder: Path, images: int) -> Path:
    """Pack the corpus, unless that is done already."""
    shards = folder / f"shards-{images}"
    if not (shards / "manifest.json").exists():
        corpus = write_corpus(folder / f"jpeg-{images}", images)
        pack(corpus, shards, PackSettings(codec=ImageCodec(), name="corpus"))
    return shards


def payloads_of(pipe: Pipeline, step: int) -> list[bytes]:
    """The bytes of a batch, not decoded."""
    (corpus,) = pipe.source.corpora
    store, wants = corpus.store, pipe.source.wants(step)
    return [
        read_sample(tar, wanted(tar.index, row, file=store.name(shard))).data
        for shard, row in zip(wants.shards.tolist(), wants.rows.tolist(), strict=True)
        for tar in (store.open(shard),)
    ]


def cases_of(pipe: Pipeline, single: Pipeline, manifest: Manifest) -> dict[str, Callable[[], int]]:
    """Each case goes over all whole batches of an epoch once and returns how many images it did."""
    steps = range(len(pipe))
    images = len(steps) * pipe.spec.size
    payloads = [data for step in steps for data in payloads_of(pipe, step)]
    threads = ThreadPoolExecutor(cores())

    def bare() -> int:
        for start in range(0, images, pipe.spec.size):
            list(threads.map(decode, payloads[start : start + pipe.spec.size]))
        return images

    def decoded() -> int:
        for step in steps:
            pipe.loading.load_ahead(step, end=len(steps))  # no worker is left at work
        return images

    def read() -> int:
        for step in range(EPOCHS * len(steps)):
            single.loading.load_ahead(step, READ)
        return EPOCHS * images

    def plain() -> int:
        urls = [str(manifest.tar(shard)) for shard in manifest.shards]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # it leaves its files open
            return sum(1 for _ in webdataset.WebDataset(urls, shardshuffle=False))

    return {
        "bare decoder": bare,
        "reader + decoder": decoded,
        "reader": read,
        "webdataset": plain,
    }


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Take the median of paired ratios."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def memory_growth(shards: Path) -> float:
    """MB of resident memory between the first three epochs and the last three of nine (medians)."""
    with sslpipe.load(recipe(), shards=shards) as pipe:
        resident = []
        for _ in range(9):
            for _batch in pipe:
                pass
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            resident.append(pages * resource.getpagesize() / 1e6)
    return statistics.median(resident[-3:]) - statistics.median(resident[:3])


def start_ups() -> dict[int, float]:
    """Milliseconds to build the order and plan the first batch of one of 8 ranks, by samples."""
    out = {}
    for power in (6, 7, 8, 9):
        sizes = np.full(10 ** (power - 4), 10_000, dtype=np.int64)
        start = time.perf_counter()
        made = order.build_order(sizes, kind="lanes", seed=0, lanes=256, window=4)
        made.locate(order.slots(batch_size=1024, lanes=256, rank=0, world_size=8))
        out[power] = (time.perf_counter() - start) * 1e3
    return out


def open_100_000(folder: Path) -> float:
    """Milliseconds to read the manifest of 1e5 shards."""
    shards = tuple(
        Shard(f"c-{i:06d}.tar", 10_000, 10**9, f"{i:064x}", f"{i:064x}") for i in range(100_000)
    )
    place = folder / "manifest-1e5"
    place.mkdir(exist_ok=True)
    write_manifest(Manifest("c", place, "image", (), {}, (), shards, 0, None))
    start = time.perf_counter()
    read_manifest(place)
    return (time.perf_counter() - start) * 1e3


def planning() -> float:
    """Microseconds per sample to locate the batches of one of 8 ranks in 1e9 samples."""
    sizes = np.full(100_000, 10_000, dtype=np.int64)
    made = order.build_order(sizes, kind="lanes", seed=0, lanes=256, window=4)
    slots = order.slots(batch_size=1024, lanes=256, rank=0, world_size=8)
    steps = range(1000, 1400)
    made.locate(1000 * 1024 + slots)
    start = time.perf_counter()
    for step in steps:
        made.locate(step * 1024 + slots)
    return (time.perf_counter() - start) * 1e6 / (len(steps) * len(slots))


if __name__ == "__main__":
    main()
