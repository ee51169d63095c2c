"""The tables of pipelines/SCALE.md: 10^9 images on 64 nodes, from constants that are measured.

    python tools/bench/scale_page.py              # the tables of the page
    python tools/bench/scale_page.py --write      # put them into the page

`MEASURED` is what scale_measure.py said on the machine that is named on the page, `SIMULATED` what
nodes.py found; all else follows from these by scale_run.py and the functions here.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sslpipe.shards.index import MEMBER, SAMPLE
from sslpipe.shards.read.download import BLOCK
from sslpipe.stream.order import Global
from sslpipe.stream.records import ROWS
from sslpipe.stream.shard_lookahead import AHEAD

sys.path.insert(0, str(Path(__file__).parent))
from scale_run import RUN, Run, in_lanes, in_mixture, shards_of_node

PAGE = Path(__file__).parents[2] / "pipelines" / "SCALE.md"
INDEXED = SAMPLE.itemsize + MEMBER.itemsize  # bytes of a sample of one member
MEASURED = {  # by scale_measure.py
    "manifest_bytes_a_shard": 253.0,
    "manifest_memory_bytes_a_shard": 1128.0,
    "manifest_us_a_shard": 4.0,
    "index_us_a_sample": 0.05,
    "lanes_first_s": 0.02,
    "lanes_us_a_sample": 0.23,
    "global_us_a_sample": 0.36,
    "mixture_us_a_sample": 0.65,
    "state_bytes": 146.0,
}
SIMULATED: tuple[dict[str, Any], ...] = (  # rows of nodes.py
    {
        "case": "mixture",
        "samples": 10752,
        "shares": [0.6001, 0.2999, 0.1],
        "farthest_from_weight_samples": 0.8,
        "wrong": 0,
        "shards_a_node": 48.11,
        "of_shards": 1831,
        "times_its_share": 1.68,
    },
    {"case": "epoch", "samples": 10752, "wrong": 0},
    {
        "case": "downloads, lanes",
        "shards_a_node": 16.19,
        "predicted": 16.18,
        "times_its_share": 1.06,
        "cache_hits": 0.904,
    },
    {
        "case": "lost",
        "killed": 8,
        "in_step": 12,
        "resumed_on": 56,
        "at_step": 12,
        "steps_that_differ": 0,
        "wrong": 0,
    },
    {
        "case": "uneven",
        "one_slower_by": 4,
        "step_s_alike": 0.216,
        "step_s_uneven": 0.58,
        "decoding_alone_s": 0.14,
    },
    {
        "case": "downloads, global",
        "shards_a_node": 155.78,
        "predicted": 155.47,
        "times_its_share": 10.2,
        "cache_hits": 0.073,
        "wrong": 0,
    },
    {
        "case": "downloads, sequential",
        "shards_a_node": 37.09,
        "predicted": 37.09,
        "times_its_share": 2.43,
        "cache_hits": 0.779,
        "wrong": 0,
    },
)


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
    tars = run.window_shards * run.shard_bytes * run.lanes_of(0, run.lanes)
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
            ["manifest", f"{MEASURED['manifest_memory_bytes_a_shard'] * run.shards / 1e6:.0f}"],
            ["order `lanes`: shards in their order, windows of own lanes",
             f"{(2 * 8 * run.shards + rank) / 1e6:.1f}"],
            ["order `global`: tables of the network", f"{feistel / 1e6:.1f}"],
            ["indexes, at most", f"{ROWS * INDEXED / 1e6:.0f}"],
        ],
    )  # fmt: skip


def plan_table(run: Run) -> str:
    """Planning, and the indexes: one is read a shard, or where they are not kept, a sample."""
    once = MEASURED["index_us_a_sample"]
    rows = [
        [name, f"{MEASURED[f'{kind}_us_a_sample']:.2f}", f"{indexes:.2f}"]
        for name, kind, indexes in (
            ("`lanes`", "lanes", once),
            ("`global`", "global", once * run.shard),
            (f"three sets by weight, {run.ranks} ranks", "mixture", once),
        )
    ]
    return table(["us of CPU a sample, at 10^9", "planning", "reading indexes"], rows)


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
    fewer = replace(run, nodes=56, batch=14_336)  # after 8 are lost
    found = [
        (f"`lanes`, {run.lanes} of them", run, in_lanes(run, run.lanes)),
        ("`lanes`, 256 of them (the default)", run, in_lanes(run, 256)),
        ("the same on 56 nodes, batch 14,336", fewer, in_lanes(fewer, 256)),
        ("3,584 of them on 56 nodes", fewer, in_lanes(fewer, 3_584)),
        *((f"`{kind}`", run, shards_of_node(kind, run.samples, run.shard, run.nodes, run.batch))
          for kind in ("sequential", "global")),
        *((f"three sets by weight, {lanes} lanes of each", run, in_mixture(run, lanes))
          for lanes in (256, run.lanes)),
    ]  # fmt: skip
    rows = [
        [name, f"{shards:,.0f}", f"{shards * run.shard_bytes / 1e12:.2f}",
         f"{shards * run.shard * of.nodes / run.samples:.2f}",
         f"{100 * (1 - shards * of.nodes / run.samples):.2f} %"]
        for name, of, shards in found
    ]  # fmt: skip
    return table(["order", "shards a node", "TB a node", "times its share", "cache hits"], rows)


def shard_table(run: Run) -> str:
    """What the size of shards decides."""
    rows = []
    for shard in (1_000, 2_500, 10_000, 40_000):
        sized = replace(run, shard=shard)
        lanes = sized.lanes_of(0, sized.lanes)
        tars = lanes * sized.window_shards * sized.shard_bytes
        rank = shards_of_node("lanes", sized.samples, shard, sized.ranks, sized.batch)
        rows.append([
            f"{sized.shard_bytes / 1e6:,.0f} MB", f"{sized.shards:,}",
            f"{MEASURED['manifest_bytes_a_shard'] * sized.shards / 1e6:.0f}",
            f"{MEASURED['manifest_us_a_shard'] * sized.shards / 1e6:.1f}",
            f"{tars / AHEAD / 1e9:,.0f}", f"{8 * tars / 1e9 / sized.gbit:.0f}",
            f"{100 * (rank * shard / (sized.samples / sized.ranks) - 1):.2f} %",
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


def features_table(run: Run) -> str:
    rows = [
        [f"{samples:,}", f"{4 * 2048 * samples / 1e9:,.0f}"] for samples in (10**6, 10**7, 10**9)
    ]
    return table(["samples", "GB of features, 2,048 wide, fp32"], rows)


def constants_table(run: Run) -> str:
    return table(["constant", "value"], [[f"`{k}`", f"{v:g}"] for k, v in MEASURED.items()])


def nodes_table(run: Run) -> str:
    """Rows of nodes.py: whatever it says of each case."""
    rows = []
    for row in SIMULATED:
        told = ", ".join(
            f"{name.replace('_', ' ')} {value}" for name, value in row.items() if name != "case"
        )
        rows.append([str(row["case"]), told])
    return "\n".join(["| case | what was found |", "| --- | --- |",
                      *(f"| {' | '.join(row)} |" for row in rows)])  # fmt: skip


TABLES: dict[str, Callable[[Run], str]] = {
    "index": index_table, "start": start_table, "memory": memory_table, "plan": plan_table,
    "network": network_table, "downloads": download_table, "shards": shard_table,
    "requests": request_table, "features": features_table, "constants": constants_table,
    "nodes": nodes_table,
}  # fmt: skip


def written(text: str) -> str:
    """The page with its tables computed anew."""

    def filled(found: re.Match[str]) -> str:
        return f"<!-- table: {found[1]} -->\n{TABLES[found[1]](RUN)}\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end -->", filled, text, flags=re.DOTALL)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--write", action="store_true")
    chosen = options.parse_args()
    if chosen.write:
        PAGE.write_text(written(PAGE.read_text()))
    else:
        print("\n\n".join(f"{name}\n{made(RUN)}" for name, made in TABLES.items()))


if __name__ == "__main__":
    main()
