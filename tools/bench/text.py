"""Rows of text: our stream against HF datasets with its collators and TRL's packing, one corpus.

    PYTHONPATH=PEERS python tools/bench/text.py CORPUS.jsonl.gz [--repeat 4] [--rounds 3]
        [--length 512] [--batch 32] [--workers 0] [--documents 1000000]
        [--folder /tmp/sslpipe-bench-text]

CORPUS: lines of JSON objects with a "text", public-domain English here. All sides have the same
BPE, trained on it, rows of the same length, and one process (`--workers 0`), one after the other
in each round; ratios are of tokens per second of CPU, medians over rounds. Repeats of the corpus
differ by a line, so that no cache knows them. Peers (`pip install --target PEERS datasets trl
pandas multiprocess xxhash dill --no-deps`) that are missing are named. What each prepares before
the first row is timed apart: counting and keeping ids here, `map` there.

Then: the share of rows that is filled, and of documents that fit in a row and are cut all the same;
resuming at the end of an epoch of `--documents`; planning 10^9; CPU time of the main process.
"""

import argparse
import gzip
import json
import statistics
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import text_peers
import torch
from provenance import row
from rich.table import Table
from text_shapes import WINDOW, console, our_shapes, packing_table

import sslpipe
from sslpipe.modalities.text import tokens as tokens_of_this_process
from sslpipe.modalities.text.codec import TextCodec
from sslpipe.modalities.text.counting import count_tokens
from sslpipe.modalities.text.training import TrainSettings, train_vocabulary
from sslpipe.pipeline import Pipeline
from sslpipe.recipe import Recipe, parse_recipe
from sslpipe.shards import PackSettings, open_threads, pack, read_manifest
from sslpipe.stream import order
from sslpipe.stream.packing import PACKERS
from sslpipe.stream.rows import Rows

RECIPE = """
modality: text
stream: {{batch_size: {batch}, rows: {{packing: {packing}, window: 1024}}}}
views: {{tokens: {{ops: [Tokens: {{length: {length}, vocabulary: "{vocabulary}"}}]}}}}
{targets}
run: {{workers: {workers}, prefetch: {prefetch}, threads: 1}}
"""
MLM = "targets: {mlm: {view: tokens, task: mlm}}"
SIZE = 8192  # of the vocabulary
MANY, EPOCHS = 256, 5  # rows of a batch for which the main process is timed, and how often


@dataclass(frozen=True)
class Setting:
    """What all sides do."""

    length: int
    batch: int
    workers: int
    vocabulary: Path

    def recipe(self, targets: str = "", packing: str = "best_fit", workers: int = -1) -> Recipe:
        """Ours."""
        workers = self.workers if workers < 0 else workers
        text = RECIPE.format(
            batch=self.batch, packing=packing, length=self.length, targets=targets,
            vocabulary=self.vocabulary, workers=workers, prefetch=2 if workers else 0,
        )  # fmt: skip
        return parse_recipe(text)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("corpus", type=Path)
    options.add_argument("--repeat", type=int, default=4)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--length", type=int, default=512)
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--workers", type=int, default=0)
    options.add_argument("--documents", type=int, default=10**6)
    options.add_argument("--folder", type=Path, default=Path("/tmp/sslpipe-bench-text"))
    chosen = options.parse_args()
    torch.set_num_threads(1)
    chosen.folder.mkdir(parents=True, exist_ok=True)
    once = read_texts(chosen.corpus)
    texts = [f"{text}\n{number}" for number in range(chosen.repeat) for text in once]
    kept, plain, took = prepare(chosen.folder, texts, chosen.repeat)
    setting = Setting(chosen.length, chosen.batch, chosen.workers, kept / "tokenizer.json")
    cases = ours(kept, plain, setting)
    peers, prepared, shapes = text_peers.cases(texts, setting, chosen.folder)
    took |= prepared
    cases |= peers
    rates = measure(cases, chosen.rounds)
    show(rates, took)
    shapes = our_shapes(kept, setting.recipe(), setting.length) | shapes
    figures = summary(rates) + packing_table(shapes)
    figures += late(chosen.folder, chosen.documents) + main_cost(kept, setting)
    console.print(figures)
    console.print(row(figures, "tiktoken", "tokenizers", *text_peers.versions()), soft_wrap=True)


def read_texts(corpus: Path) -> list[str]:
    """The documents."""
    opened = gzip.open if corpus.suffix == ".gz" else open
    with opened(corpus, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def prepare(folder: Path, texts: list[str], repeat: int) -> tuple[Path, Path, dict[str, float]]:
    """The packed set with ids beside its tars, the same without, and seconds that this took."""
    kept, plain = folder / f"ids-{repeat}", folder / f"counted-{repeat}"
    took: dict[str, float] = {}
    for shards, ids in ((kept, True), (plain, False)):
        if not (shards / "manifest.json").exists():
            lines = folder / "corpus.jsonl"
            lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
            pack(lines, shards, PackSettings(codec=TextCodec(), shard_bytes=4_000_000))
        if not (kept / "tokenizer.json").exists():
            settings = TrainSettings(kind="bpe", size=SIZE, megabytes=8)
            data = train_vocabulary(read_manifest(kept), settings).data
            (kept / "tokenizer.json").write_bytes(data)
        start = time.perf_counter()
        with open_threads(1) as pool:
            count_tokens(shards, str(kept / "tokenizer.json"), pool=pool, ids=ids, rebuild=True)
        name = "sslpipe: count, keep ids" if ids else "sslpipe: count"
        took[name] = time.perf_counter() - start
    return kept, plain, took


Case = Callable[[], tuple[int, int]]  # one epoch: rows, tokens


def ours(kept: Path, plain: Path, setting: Setting) -> dict[str, Case]:
    """Epochs of our pipeline."""

    def epoch(shards: Path, targets: str) -> Case:
        pipe = sslpipe.load(setting.recipe(targets), shards=shards, device="cpu")
        return lambda: whole_epoch(pipe, forget=True)

    return {
        "sslpipe, causal, ids kept": epoch(kept, ""),
        "sslpipe, MLM, ids kept": epoch(kept, MLM),
        "sslpipe, causal, tokenised": epoch(plain, ""),
        "sslpipe, MLM, tokenised": epoch(plain, MLM),
    }


def whole_epoch(pipe: Pipeline, *, forget: bool = False) -> tuple[int, int]:
    """Rows and tokens of an epoch; forget: what this process has tokenised before."""
    if forget:
        tokens_of_this_process.RECENT = tokens_of_this_process.RecentIds(2**26)
    rows = tokens = 0
    for batch in pipe:
        rows += batch.views["tokens"].shape[1]
        tokens += int(batch.lengths["tokens"].sum())
    return rows, tokens


Rates = dict[str, list[tuple[float, float, float]]]


def measure(cases: dict[str, Case], rounds: int) -> Rates:
    """Rows/s, tokens/s and tokens per second of CPU, of each case in each round but the first."""
    rates: Rates = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, case in cases.items():
            start, cpu = time.perf_counter(), time.process_time()
            rows, tokens = case()
            seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
            if number:  # the first one warms up
                rates[name].append((rows / seconds, tokens / seconds, tokens / cpu))
    return rates


def show(rates: Rates, took: dict[str, float]) -> None:
    """Print both tables."""
    table = Table("case (medians)", "rows/s", "tokens/s", "tokens per s of CPU")
    for name, values in rates.items():
        table.add_row(name, *(f"{statistics.median(c):,.0f}" for c in zip(*values, strict=True)))
    console.print(table)
    table = Table("before the first row", "seconds")
    for name, seconds in took.items():
        table.add_row(name, f"{seconds:.2f}")
    console.print(table)


def summary(rates: Rates) -> str:
    """Tokens per second of CPU of ours by those of each peer, medians of paired ratios."""
    told = []
    for name, values in rates.items():
        if name.startswith("sslpipe"):
            continue
        task = "MLM" if "MLM" in name else "causal"
        mine = rates[f"sslpipe, {task}, {'tokenised' if 'on the fly' in name else 'ids kept'}"]
        ratios = [a[2] / b[2] for a, b in zip(mine, values, strict=True)]
        told.append(f"{statistics.median(ratios):.1f} x {name}")
    return f"tokens per second of CPU: {', '.join(told) or 'no peer is installed'}; "


def simulated(documents: int) -> Rows:
    """Rows of that many documents in shards of 10,000, in lanes, of lengths that are simulated."""
    sizes = np.full(documents // 10_000, 10_000, dtype=np.int64)
    made = order.build_order(sizes, kind="lanes", seed=0, lanes=256, window=4)
    table = np.random.default_rng(0).lognormal(6.3, 1, 1 << 16).astype(np.int64) + 1

    def lengths(positions: np.ndarray) -> np.ndarray:
        found = made.locate(positions)
        return table[(found.shards * 10_007 + found.rows) % len(table)]

    return Rows(documents, lambda at: PACKERS["best_fit"](lengths(at), 2048), window=WINDOW, seed=0)


def late(folder: Path, documents: int) -> str:
    """The first row of 10^9 documents; the end of an epoch of fewer, here and by skipping."""
    start = time.process_time()
    simulated(10**9).at([0])
    first = time.process_time() - start
    tracemalloc.start()
    simulated(10**9).at([0])
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    rows = simulated(documents)
    last = rows.epoch_rows(0) - 32
    anchor = rows.anchor(last)
    fresh = simulated(documents)
    start = time.process_time()
    fresh.resume(anchor)
    fresh.at(range(last, last + 32))
    mine = (time.process_time() - start) * 1e3
    theirs = text_peers.skipping(folder, documents)
    return (
        f"first row of 1e9 documents {first * 1e3:.0f} ms of CPU, {peak:.0f} MB; a batch at the "
        f"end of {documents:,} documents after {mine:.1f} ms{theirs}; "
    )


def main_cost(shards: Path, setting: Setting) -> str:
    """Microseconds of CPU of the main process for a row, medians of EPOCHS; no worker is beside."""
    told, setting = [], replace(setting, batch=MANY)
    for name, targets in (("causal", ""), ("MLM", MLM)):
        with sslpipe.load(setting.recipe(targets, workers=1), shards=shards, device="cpu") as pipe:
            whole_epoch(pipe)  # warms up
            whole, loading = [], []
            for _ in range(EPOCHS):
                start = time.process_time()
                rows, _ = whole_epoch(pipe)
                whole.append((time.process_time() - start) * 1e6 / rows)
            for _ in range(EPOCHS):
                start = time.process_time()
                for step in range(len(pipe)):
                    pipe.loading.load_ahead(step)
                loading.append((time.process_time() - start) * 1e6 / (len(pipe) * setting.batch))
        us = statistics.median(loading), statistics.median(whole)
        told.append(f"{name} {us[0]:.0f} us to load and {us[1]:.0f} us in all")
    return f"CPU of the main process for a row, {MANY} a batch: {', '.join(told)}"


if __name__ == "__main__":
    main()
