"""The arithmetic of pipelines/SCALE.md: 10^9 images on 64 nodes, from constants that are measured.

    python tools/bench/scale_page.py              # the tables of the page
    python tools/bench/scale_page.py --write      # put them into the page
    python tools/bench/scale_page.py --measure    # the constants anew, on this machine: JSON

`MEASURED` is what `--measure` said on the machine that is named on the page; all else follows from
it by the functions here, which nodes.py and the tests compare with streams that run.
"""

import argparse
import hashlib
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sslpipe.shards.index import MEMBER, SAMPLE, Index, parse_index, write_index
from sslpipe.shards.manifest import Manifest, Shard, read_manifest, write_manifest
from sslpipe.shards.read.download import BLOCK
from sslpipe.stream.order import Global, build_order, default_lanes, slots
from sslpipe.stream.records import ROWS
from sslpipe.stream.shard_lookahead import AHEAD

PAGE = Path(__file__).parents[2] / "pipelines" / "SCALE.md"
INDEXED = SAMPLE.itemsize + MEMBER.itemsize  # bytes of a sample of one member
MEASURED = {
    "manifest_bytes_a_shard": 253.0,
    "manifest_us_a_shard": 2.9,
    "manifest_memory_a_shard": 1113.0,
    "index_us_a_sample": 0.1,
    "lanes_first_s": 0.066,
    "lanes_us_a_sample": 0.23,
    "global_us_a_sample": 0.38,
    "state_bytes": 200.0,
}


@dataclass(frozen=True)
class Run:
    """A run of 512 GPUs over 10^9 images of 100 kB; what else is said follows from it."""

    samples: int = 10**9
    sample_bytes: int = 100_000
    shard: int = 10_000  # samples
    nodes: int = 64
    ranks_a_node: int = 8
    batch: int = 16_384
    lanes: int = 512
    window: int = 4  # shards
    gbit: float = 25.0  # of a node's network

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_a_node

    @property
    def shards(self) -> int:
        return -(-self.samples // self.shard)

    @property
    def shard_bytes(self) -> int:
        return self.shard * self.sample_bytes

    @property
    def window_shards(self) -> int:
        """Shards of a lane that are needed at a time: a window begins anywhere in a shard."""
        return self.window + 1

    def lanes_of_node(self, lanes: int) -> int:
        """How many lanes a node walks, with so many in all."""
        ranks = range(self.ranks_a_node)
        mine = [
            slots(batch_size=self.batch, lanes=lanes, rank=r, world_size=self.ranks) for r in ranks
        ]
        return len(np.unique(np.concatenate(mine) % lanes))


RUN = Run()


def shards_of_node(order: str, samples: int, shard: int, nodes: int, batch: int) -> float:
    """Shards that one of `nodes` downloads in an epoch with room for them all, on average.

    lanes: one run of samples on the line of shards, if the nodes divide the lanes. sequential: one
    run of each batch. global: any; each of S shards is missed with (1 - 1/S)^m.
    """
    mine, count = samples / nodes, samples / shard
    if order == "lanes":
        return min(count, 1 + (mine - 1) / shard)
    if order == "sequential":
        return min(count, samples / batch * (1 + (batch / nodes - 1) / shard))
    return float(count * -np.expm1(mine * np.log1p(-1 / count)))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown; all columns but the first hold numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def index_table(run: Run) -> str:
    whole = run.samples * INDEXED
    mine = shards_of_node("lanes", run.samples, run.shard, run.ranks, run.batch) * run.shard
    return table(
        ["what", "bytes"],
        [
            ["index of a sample, one member (each further one: 20)", f"{INDEXED}"],
            ["indexes of all", f"{whole / 1e9:.0f} GB = {whole / 1e12:.2f} TB"],
            ["of images of 100 kB that is", f"{100 * INDEXED / run.sample_bytes:.2f} %"],
            ["manifest", f"{MEASURED['manifest_bytes_a_shard'] * run.shards / 1e6:.0f} MB"],
            ["indexes that a rank reads in an epoch, `lanes`", f"{mine * INDEXED / 1e6:.0f} MB"],
            ["indexes that a rank reads in an epoch, `global`", f"{whole / 1e9:.0f} GB or more"],
            ["indexes that a rank keeps in memory, at most", f"{ROWS * INDEXED / 1e9:.1f} GB"],
            ["where a run stands, in a checkpoint", f"{MEASURED['state_bytes']:.0f}"],
        ],
    )


def start_table(run: Run) -> str:
    read = MEASURED["index_us_a_sample"] * run.window_shards * run.shard / 1e6
    tars = run.window_shards * run.shard_bytes * run.lanes_of_node(run.lanes)
    return table(
        ["until the first batch of a rank", "seconds"],
        [
            ["manifest read", f"{MEASURED['manifest_us_a_shard'] * run.shards / 1e6:.2f}"],
            ["order of the first epoch, and the first window", f"{MEASURED['lanes_first_s']:.2f}"],
            [f"{run.window_shards} indexes read and hashed", f"{read:.3f}"],
            [
                f"tars of the first windows: {tars / 1e9:.0f} GB a node at {run.gbit:.0f} Gbit/s",
                f"{8 * tars / 1e9 / run.gbit:.0f}",
            ],
        ],
    )


def memory_table(run: Run) -> str:
    feistel = Global(np.full(run.shards, run.shard), seed=0)._tables(0).nbytes
    rank = run.lanes // run.ranks * run.window * run.shard * 4
    return table(
        ["memory of a rank", "MB"],
        [
            ["manifest", f"{MEASURED['manifest_memory_a_shard'] * run.shards / 1e6:.0f}"],
            ["order `lanes`: shards in their order, windows of own lanes",
             f"{(2 * 8 * run.shards + rank) / 1e6:.1f}"],
            ["order `global`: tables of the network", f"{feistel / 1e6:.1f}"],
            ["indexes, at most", f"{ROWS * INDEXED / 1e6:.0f}"],
        ],
    )  # fmt: skip


def plan_table(run: Run) -> str:
    rows = [[f"`{kind}`", f"{MEASURED[f'{kind}_us_a_sample']:.2f}"] for kind in ("lanes", "global")]
    return table(["planning, us of CPU a sample", "at 10^9"], rows)


def network_table(run: Run) -> str:
    rates, sizes = (300, 1000, 2500), (30_000, 100_000, 300_000)
    rows = [
        [f"{size // 1000} kB", *(
            f"{8 * size * rate * run.ranks_a_node / 1e9:.1f}" for rate in rates
        )]
        for size in sizes
    ]  # fmt: skip
    return table(["Gbit/s of a node of 8 GPUs, at images/s of each", *map(str, rates)], rows)


def download_table(run: Run) -> str:
    """What the nodes download in an epoch, with room for what they need, and hits of the cache."""
    default = default_lanes(run.batch)
    found = {
        f"`lanes`, {run.lanes} of them": shards_of_node(
            "lanes", run.samples, run.shard, run.nodes, run.batch
        ),
        f"`lanes`, {default} of them (the default)": run.shards
        * run.lanes_of_node(default) / default,
        "`sequential`": shards_of_node("sequential", run.samples, run.shard, run.nodes, run.batch),
        "`global`": shards_of_node("global", run.samples, run.shard, run.nodes, run.batch),
        "a mixture, of any order": float(run.shards),
    }  # fmt: skip
    mine = run.samples / run.nodes
    rows = [
        [name, f"{shards:,.0f}", f"{shards * run.shard_bytes / 1e12:.2f}",
         f"{shards * run.shard / mine:.2f}", f"{100 * (1 - shards / mine):.2f} %"]
        for name, shards in found.items()
    ]  # fmt: skip
    return table(["order", "shards a node", "TB a node", "times its share", "cache hits"], rows)


def shard_table(run: Run) -> str:
    """What the size of shards decides."""
    rows = []
    for count in (1_000, 2_500, 10_000, 40_000):
        sized = Run(shard=count)
        lanes = sized.lanes_of_node(sized.lanes)
        tars = lanes * sized.window_shards * sized.shard_bytes
        rank = shards_of_node("lanes", sized.samples, count, sized.ranks, sized.batch)
        rows.append([
            f"{sized.shard_bytes / 1e6:,.0f} MB", f"{sized.shards:,}",
            f"{MEASURED['manifest_bytes_a_shard'] * sized.shards / 1e6:.0f}",
            f"{MEASURED['manifest_us_a_shard'] * sized.shards / 1e6:.1f}",
            f"{tars / AHEAD / 1e9:,.0f}", f"{8 * tars / 1e9 / sized.gbit:.0f}",
            f"{100 * (rank * count / (sized.samples / sized.ranks) - 1):.2f} %",
        ])  # fmt: skip
    head = ["tar", "shards", "manifest MB", "read in s", "cache of a node, GB",
            "first windows in s", "read twice"]  # fmt: skip
    return table(head, rows)


def request_table(run: Run) -> str:
    rows = []
    for rate in (300, 2500):
        each = rate * run.ranks
        rows.append([
            f"{rate}", f"{each:,}", f"{each * run.sample_bytes / BLOCK:,.0f}",
            f"{each * run.sample_bytes / 1e9:,.1f}",
        ])  # fmt: skip
    head = ["images/s of a GPU", "requests/s without a cache", "with `run.cache`", "GB/s"]
    return table(head, rows)


TABLES: dict[str, Callable[[Run], str]] = {
    "index": index_table, "start": start_table, "memory": memory_table, "plan": plan_table,
    "network": network_table, "downloads": download_table, "shards": shard_table,
    "requests": request_table,
}  # fmt: skip


def written(text: str) -> str:
    """The page with its tables computed anew."""

    def filled(found: re.Match[str]) -> str:
        return f"<!-- table: {found[1]} -->\n{TABLES[found[1]](RUN)}\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end -->", filled, text, flags=re.DOTALL)


def measure() -> Iterator[tuple[str, float]]:
    """The constants, on this machine: CPU seconds, the least of several rounds."""
    with tempfile.TemporaryDirectory() as name:
        yield from of_manifest(Path(name))
        yield "index_us_a_sample", 1e6 * of_index(Path(name)) / RUN.shard
    sizes = np.full(RUN.shards, RUN.shard)
    for kind in ("lanes", "global"):
        lanes = RUN.lanes if kind == "lanes" else 1
        mine = slots(batch_size=RUN.batch, lanes=lanes, rank=100, world_size=RUN.ranks)
        made = build_order(sizes, kind=kind, seed=0, lanes=RUN.lanes, window=RUN.window)
        start = time.process_time()
        made.locate(mine)
        if kind == "lanes":
            yield "lanes_first_s", time.process_time() - start
        steps = iter(range(1, 10**9))
        took = least(lambda: [made.locate(next(steps) * RUN.batch + mine) for _ in range(1000)])  # noqa: B023
        yield f"{kind}_us_a_sample", 1e6 * took / 1000 / len(mine)


def of_manifest(folder: Path) -> Iterator[tuple[str, float]]:
    digest = hashlib.sha256(b"").hexdigest()
    shards = tuple(
        Shard(f"images-{n:06d}.tar", RUN.shard, RUN.shard_bytes, digest, digest)
        for n in range(RUN.shards)
    )
    write_manifest(
        Manifest("images", folder, "image", ("height", "width"), {}, (), shards, 0, None)
    )
    del shards
    size = (folder / "manifest.json").stat().st_size
    before = resident()
    kept = read_manifest(folder)
    yield "manifest_bytes_a_shard", size / RUN.shards
    yield "manifest_memory_a_shard", (resident() - before) / len(kept.shards)
    yield "manifest_us_a_shard", 1e6 * least(lambda: read_manifest(folder)) / RUN.shards


def of_index(folder: Path) -> float:
    """Seconds to read an index of a shard, hash it and look at all its numbers."""
    samples, members = np.zeros(RUN.shard, SAMPLE), np.zeros(RUN.shard, MEMBER)
    samples["first"], samples["members"] = np.arange(RUN.shard), 1
    index = Index(samples, members, ("jpg",), RUN.shard_bytes, hashlib.sha256(b"").hexdigest())
    write_index(folder / "a.tar", index)

    def read() -> None:
        data = (folder / "a.tar.idx").read_bytes()
        hashlib.sha256(data).hexdigest()
        parse_index(data, "a.tar.idx")

    return least(read)


def least(work: Callable[[], object]) -> float:
    """CPU seconds of the quickest of five rounds."""
    found = []
    for _ in range(5):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def resident() -> int:
    """Bytes of this process in memory."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(re.findall(r"VmRSS:\s+(\d+)", text)[0])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--write", action="store_true")
    options.add_argument("--measure", action="store_true")
    chosen = options.parse_args()
    if chosen.measure:
        print(json.dumps({name: round(value, 4) for name, value in measure()}, indent=1))
    elif chosen.write:
        PAGE.write_text(written(PAGE.read_text()))
    else:
        print("\n\n".join(f"{name}\n{made(RUN)}" for name, made in TABLES.items()))


if __name__ == "__main__":
    main()
