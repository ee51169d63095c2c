"""What packing costs: against copying the same files, and against bare decode-resize-encode.

    python tools/bench/pack.py [--images 2000] [--rounds 5] [--resize 256] [--folder /tmp/...]

Every round runs all cases after each other on the same files in the page cache; ratios are medians
over rounds. `copy` copies the files on as many threads as there are cores. After every case that
writes, `os.sync` is part of its time, so all that was written is on the disk (packing also syncs
each tar before it says that it is finished). `bare` reads, decodes, resizes and encodes on as many
threads, and keeps nothing. Pools are started before; how long that takes stands apart. Peers, where
installed: img2dataset and FFCV's writer, on the same files with the same resize.
"""

import argparse
import importlib.util
import multiprocessing
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from multiprocessing.pool import ThreadPool
from pathlib import Path

from provenance import row, write_corpus
from rich.console import Console
from rich.table import Table

from sslpipe.modalities.image.codec import ImageCodec
from sslpipe.shards import PackSettings, Processes, open_threads, pack
from sslpipe.shards.make.plan import Check
from sslpipe.shards.make.pools import Pool, cores

CODEC = ImageCodec()
Case = Callable[[Path], None]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--images", type=int, default=2000)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--resize", type=int, default=256)
    options.add_argument("--folder", type=Path, default=Path("/tmp/sslpipe-bench"))
    chosen = options.parse_args()
    console = Console()
    corpus = write_corpus(chosen.folder / f"jpeg-{chosen.images}", chosen.images)
    files = sorted(corpus.rglob("*.jpg"))
    size = sum(file.stat().st_size for file in files)
    with ExitStack() as stack:
        threads = stack.enter_context(open_threads())
        start = time.perf_counter()
        processes = stack.enter_context(Processes(cores()))
        list(processes.imap_unordered(time.sleep, [0.5] * cores()))
        start_up = time.perf_counter() - start - 0.5
        cases = cases_of(corpus, files, chosen.resize, {"threads": threads, "processes": processes})
        cases |= dict(peers(corpus, files, chosen.resize, console))
        seconds = {name: [] for name in cases}
        for _ in range(chosen.rounds):
            for name, case in cases.items():
                seconds[name].append(timed(case, chosen.folder / "out"))
    show(console, seconds, len(files), size)
    figures = "; ".join(
        f"{name} / {base}: {ratio(seconds[base], seconds[name]):.2f}"
        for base, names in COMPARED.items()
        for name in names
    )
    figures += f"; processes start in {start_up:.1f} s"
    console.print(figures)
    console.print(row(figures, "simplejpeg", "webdataset"), soft_wrap=True)


COMPARED = {
    "copy": [
        f"{check}, {pool}" for check in ("decode", "header") for pool in ("threads", "processes")
    ],
    "bare": ["resize, threads", "resize, processes"],
}


def cases_of(
    corpus: Path, files: list[Path], resize: int, pools: dict[str, Pool]
) -> dict[str, Case]:
    """Each case handles every file once and writes, if at all, into the folder that it gets."""

    def bare(out: Path) -> None:
        with ThreadPool(cores()) as pool:
            list(pool.imap_unordered(shrink, [(file, resize) for file in files], 8))

    def copy(out: Path) -> None:
        with ThreadPool(cores()) as pool:
            list(pool.imap_unordered(copy_file, [(f, out / f.relative_to(corpus)) for f in files]))

    cases: dict[str, Case] = {"copy": copy}
    for check in ("decode", "header"):
        for name, pool in pools.items():
            cases[f"{check}, {name}"] = packing(corpus, pool, check, None)
    cases["bare"] = bare
    for name, pool in pools.items():
        cases[f"resize, {name}"] = packing(corpus, pool, "decode", resize)
    return cases


def packing(corpus: Path, pool: Pool, check: Check, resize: int | None) -> Case:
    def case(out: Path) -> None:
        settings = PackSettings(codec=CODEC, check=check, resize=resize, shard_bytes=8 * 2**20)
        pack(corpus, out, settings, pool=pool)

    return case


def shrink(job: tuple[Path, int]) -> int:
    file, resize = job
    return len(CODEC.shrink(file.read_bytes(), side=resize, quality=90))


def copy_file(job: tuple[Path, Path]) -> None:
    source, target = job
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def timed(case: Case, out: Path) -> float:
    """Seconds of a case, until all that it wrote is on the disk."""
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    start = time.perf_counter()
    case(out)
    os.sync()
    passed = time.perf_counter() - start
    shutil.rmtree(out, ignore_errors=True)
    return passed


def ratio(base: list[float], ours: list[float]) -> float:
    """Median of paired ratios of rates."""
    return statistics.median(a / b for a, b in zip(base, ours, strict=True))


def show(console: Console, seconds: dict[str, list[float]], images: int, size: int) -> None:
    table = Table("case", "images/s (median)", "MB/s read")
    for name, values in seconds.items():
        middle = statistics.median(values)
        table.add_row(name, f"{images / middle:,.0f}", f"{size / 1e6 / middle:,.0f}")
    console.print(table)


def peers(
    corpus: Path, files: list[Path], resize: int, console: Console
) -> Iterator[tuple[str, Case]]:
    """The writers of others, if installed."""
    for name, made in (("img2dataset", img2dataset), ("ffcv", ffcv)):
        if importlib.util.find_spec(name):
            yield name, made(corpus, files, resize)
        else:
            console.print(f"{name} is not installed and left out")


def img2dataset(corpus: Path, files: list[Path], resize: int) -> Case:
    from img2dataset import download

    def case(out: Path) -> None:
        out.mkdir(parents=True)
        urls = out / "urls.txt"
        urls.write_text("".join(f"{file.as_uri()}\n" for file in files))
        download(
            url_list=str(urls),
            output_folder=str(out / "shards"),
            output_format="webdataset",
            image_size=resize,
            resize_mode="keep_ratio",
            resize_only_if_bigger=True,
            encode_quality=90,
            processes_count=cores(),
            thread_count=4 * cores(),
            number_sample_per_shard=500,
            enable_wandb=False,
            disable_all_reencoding=False,
        )

    return case


class Photos:
    """The files as FFCV's writer wants them."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, item: int):  # a tuple of one PIL image
        from PIL import Image

        return (Image.open(self.files[item]).convert("RGB"),)


def ffcv(corpus: Path, files: list[Path], resize: int) -> Case:
    from ffcv.fields import RGBImageField
    from ffcv.writer import DatasetWriter

    def case(out: Path) -> None:
        out.mkdir(parents=True)
        fields = {"image": RGBImageField(write_mode="jpg", max_resolution=resize, jpeg_quality=90)}
        writer = DatasetWriter(str(out / "set.beton"), fields, num_workers=cores())
        writer.from_indexed_dataset(Photos(files))

    return case


if __name__ == "__main__":
    multiprocessing.freeze_support()
    main()
