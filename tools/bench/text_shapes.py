"""What packings make of documents: rows filled, documents cut, tokens lost; for text.py."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import sslpipe
from sslpipe.recipe import Recipe
from sslpipe.stream.packing import PACKERS

WINDOW = 1024  # documents that are packed together
console = Console(width=140)


@dataclass(frozen=True)
class Shape:
    """What a packing makes of documents: shares of 1."""

    fill: float  # of the steps of rows
    cut: float  # of the documents that fit in a row
    lost: float  # of the tokens


def our_shapes(shards: Path, recipe: Recipe, length: int) -> dict[str, Shape]:
    """Of each of our packings, over the lengths of one epoch."""
    found = {}
    with sslpipe.load(recipe, shards=shards, device="cpu") as pipe:
        corpus = pipe.source.corpora[0]
        located = corpus.locate(np.arange(corpus.order.samples))
        extents = corpus.records.at(located.shards, located.rows).samples["extent"]
        lengths = pipe.parts[0].decider.lengths(extents)
    for name in ("best_fit", "concat", "one"):
        made = [
            (window, PACKERS[name](window, length))
            for window in np.split(lengths, range(WINDOW, len(lengths), WINDOW))
        ]
        pieces = [np.bincount(s.documents, minlength=len(w)) for w, s in made]
        fits = [w <= length for w, _ in made]
        rows = sum(s.row_count for _, s in made)
        tokens = sum(int(s.lengths.sum()) for _, s in made)
        cut = sum(int((p[f] > 1).sum()) for p, f in zip(pieces, fits, strict=True))
        found[f"sslpipe, {name}"] = Shape(
            tokens / (rows * length), cut / sum(int(f.sum()) for f in fits),
            1 - tokens / int(lengths.sum()),
        )  # fmt: skip
    return found


def packing_table(shapes: dict[str, Shape]) -> str:
    """Print what becomes of documents; the same as text for ours by best fit."""
    table = Table("packing", "filled", "documents that fit, cut", "tokens lost")
    for name, shape in shapes.items():
        table.add_row(name, *(f"{100 * n:.2f} %" for n in (shape.fill, shape.cut, shape.lost)))
    console.print(table)
    mine = shapes["sslpipe, best_fit"]
    return f"best fit fills {100 * mine.fill:.2f} % and cuts {100 * mine.cut:.2f} %; "
