"""The numbers of a report: one row per measure, one column per encoder, and one line of verdict."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Literal

from ..evaluate.results import Evaluation, Measure

Kind = Literal["trained", "untrained", "pixels", "counts", "spectrogram", "frame"]
KINDS: tuple[Kind, ...] = ("trained", "untrained", "pixels", "counts", "spectrogram", "frame")
SAID = {
    "trained": "trained",
    "untrained": "untrained",
    "pixels": "raw pixels",
    "counts": "token counts",
    "spectrogram": "spectrogram",
    "frame": "mean frame",
}
VERDICT = ("knn20 top-1", "knn")  # the measure that a verdict is of, if it is there; else the first
# measures that see no labels: to compare checkpoints of one run, and nothing else
LABEL_FREE = re.compile(
    r"rankme|\w+ rank\b|lidar|alpha-?req|alignment|uniformity|nesum|participation|\bstd\b|"
    r"spread|dimension",
    re.I,
)


# measures of what a model makes of text: less is better, and they need no labels
GUESSES = re.compile(r"^(nats|perplexity|bits) per ")


@dataclass(frozen=True, slots=True)
class EncoderColumn:
    """The measures of one encoder of one checkpoint, by name."""

    title: str
    kind: Kind
    measures: dict[str, Measure]


@dataclass(frozen=True, slots=True)
class MeasureRow:
    """One measure of all encoders; None where an encoder lacks it."""

    name: str
    protocol: str
    cells: tuple[Measure | None, ...]
    chance: float | None
    label_free: bool
    share: bool  # whether the values can be drawn on a scale from 0 to 1
    guesses: bool = False  # whether it is of guessed tokens, and so less is better


@dataclass(frozen=True, slots=True)
class Verdict:
    """The line on top: `word` sums it up, `row` is the measure that it is about; None: none is."""

    word: str
    row: MeasureRow | None


def short_names(names: Sequence[str]) -> list[str]:
    """The ends of paths, as long as it takes to tell them apart."""
    parts = [PurePath(name).parts or (name,) for name in names]
    for length in range(1, 1 + max(map(len, parts))):
        short = ["/".join(each[-length:]) for each in parts]
        if len(set(short)) == len(set(names)):
            break
    return short


def columns_of(evaluations: Sequence[Evaluation]) -> list[EncoderColumn]:
    """All trained encoders, then what they are held against, each once."""
    names = short_names([evaluation.subject.name for evaluation in evaluations])
    found: list[EncoderColumn] = []
    for kind in KINDS:
        for name, evaluation in zip(names, evaluations, strict=True):
            measures = {m.name: m for m in evaluation.measures.get(kind, ())}
            known = any(c.measures == measures for c in found if c.kind == kind != "trained")
            if measures and not known:
                found.append(EncoderColumn(title(kind, name, len(evaluations)), kind, measures))
    return found


def title(kind: Kind, name: str, evaluations: int) -> str:
    """What a column is called; which checkpoint it is of, if there are several."""
    return name if kind == "trained" and evaluations > 1 else SAID[kind]


def rows_of(columns: Sequence[EncoderColumn]) -> list[MeasureRow]:
    """Every measure, in the order in which they were made."""
    names = dict.fromkeys(name for column in columns for name in column.measures)
    return [row_of(name, [column.measures.get(name) for column in columns]) for name in names]


def row_of(name: str, cells: Sequence[Measure | None]) -> MeasureRow:
    """One measure, with the protocol of the first encoder; others may have chosen another C."""
    known = [cell for cell in cells if cell is not None]
    chances = [cell.chance for cell in known if cell.chance is not None]
    return MeasureRow(
        name,
        known[0].protocol,
        tuple(cells),
        chances[0] if chances else None,
        label_free=label_free(name),
        share=not (label_free(name) or guesses(name))
        and all(0 <= cell.value <= 1 for cell in known),
        guesses=guesses(name),
    )


def guesses(name: str) -> bool:
    """Whether a measure is of how well tokens are guessed, told by its name."""
    return bool(GUESSES.search(name))


def label_free(name: str) -> bool:
    """Whether a measure sees no labels, told by its name."""
    return bool(LABEL_FREE.search(name))


def verdict(rows: Iterable[MeasureRow], columns: Sequence[EncoderColumn]) -> Verdict:
    """Hold the best trained encoder against the others, by k-NN, or else by the first measure.

    Without labels, by the first measure of guessed tokens. Two values are told apart if they differ
    by more than their intervals together.
    """
    rows = list(rows)
    shares = [row for row in rows if row.share]
    named = ([row for row in shares if row.name.startswith(start)] for start in VERDICT)
    last = [row for row in rows if row.guesses]
    row = next((found[0] for found in (*named, shares, last) if found), None)
    if row is None:
        return Verdict("No measure with labels", None)
    sign = -1 if row.guesses else 1
    pairs = [(c, m) for c, m in zip(columns, row.cells, strict=True) if m is not None]
    trained = [replace(m, value=sign * m.value) for c, m in pairs if c.kind == "trained"]
    if not trained:
        return Verdict("Nothing trained was measured", row)
    others = [(c.title, sign * m.value, m.interval or 0.0) for c, m in pairs if c.kind != "trained"]
    if row.chance is not None:
        others.append(("chance", sign * row.chance, 0.0))
    return Verdict(word_for(max(trained, key=lambda m: m.value), others), row)


def word_for(best: Measure, others: Sequence[tuple[str, float, float]]) -> str:
    """Say what a value is worth beside the largest of the others: (name, value, interval) each."""
    if not others:
        return "There is nothing to compare it with"
    name, value, interval = max(others, key=lambda other: other[1])
    margin = (best.interval or 0.0) + interval
    if best.value - value > margin:
        return "Pretraining helped"
    return f"Worse than {name}" if value - best.value > margin else f"No better than {name}"


def shown_value(value: float) -> str:
    """Three decimals, or four figures of what is larger."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"
