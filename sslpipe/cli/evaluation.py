"""The command that says what an encoder is worth."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from .options import (
    AsJson,
    Beside,
    Cache,
    Device,
    DocumentPart,
    Epochs,
    Labelled,
    Pixels,
    Protocols,
    Report,
    ShardLabels,
    Strict,
    Subject,
    Templates,
    TestShards,
    Untrained,
)  # fmt: skip
from .terminal import bar, console, notes, say_line, stopped

if TYPE_CHECKING:
    from ..evaluate import EvalSettings
    from ..evaluate.results import Evaluation, Measure

KEPT = "stopped; features that are done are kept"
# columns, in this order
ENCODERS = ("trained", "untrained", "pixels", "counts", "spectrogram", "frame")


def eval_subject(
    subject: Subject,
    shards: Labelled,
    test: TestShards = None,
    protocols: Protocols = ["quick"],  # noqa: B006 - typer copies it
    report: Report = None,
    beside: Beside = None,
    untrained: Untrained = True,
    pixels: Pixels = True,
    strict: Strict = False,
    labels: ShardLabels = None,
    epochs: Epochs = None,
    part: DocumentPart = None,
    templates: Templates = None,
    cache: Cache = None,
    as_json: AsJson = False,
    device: Device = None,
) -> None:
    """Measure an encoder, beside itself untrained, raw pixels and guessing; numbers as they come.

    Of runs on text: perplexity. On frozen features: label_free, knn, linear, retrieval, clustering,
    few_shot (all these are quick), few_labels, pseudo_labels, heads (with these: all). Training on
    augmented images, for as long as their papers say: probe_mae, probe_dino, probe_moco, finetune;
    `--epochs` shortens them.
    Of runs with a text tower, on the test set if there is one: zero_shot, cross_retrieval.
    Without `--test` samples are left out in turn, or a part is held out. Classes are matched by
    name. Features are kept, so that the next protocol needs none.

    Several GPUs share the encoding: `torchrun --nproc-per-node 8 -m sslpipe eval runs/a cifar`

    Example: `sslpipe eval runs/cifar cifar/train --test cifar/test --report report`
    """
    from ..evaluate import EvalSettings

    settings = EvalSettings(
        protocols=",".join(protocols).split(","), untrained=untrained, pixels=pixels, strict=strict,
        labels=labels, device=device, cache=cache, epochs=epochs, report=report is not None,
        templates=templates, part=None if part is None else part.value,
    )  # fmt: skip
    names = (subject, *(beside or ()))
    if not encoded_by_ranks(names, shards, test, settings):
        return
    found = measured_in_turn(names, shards, test, settings, show=not as_json)
    if as_json:
        print_json(names, found)
    if report is not None:
        from ..report import write_report

        page = write_report(found, report, say=lambda text: notes.print(text, highlight=False))
        say_line(f"wrote {page}")


def measured_in_turn(
    names: Sequence[str], shards: Path, test: Path | None, settings: "EvalSettings", *, show: bool
) -> "list[Evaluation]":
    """Measure one subject after the other, and show each protocol's numbers as they come."""
    from ..evaluate import evaluate
    from ..evaluate.subjects import open_subject

    for name in names[1:]:
        # a wrong one is told before the first is measured; opened twice, as all of them at once
        # may not fit into memory
        open_subject(name, shards)
    made = []
    for name in names:
        if show and len(names) > 1:
            console.print(f"\n{name}", highlight=False)
        with stopped(KEPT), Measuring(show=show) as shown:
            made.append(
                evaluate(
                    name, shards, test, settings, say=shown.say, progress=shown.encoded,
                    begin=shown.begin,
                )
            )  # fmt: skip
    for note in {evaluation.note for evaluation in made if evaluation.note}:
        notes.print(f"classes: {note}", highlight=False, soft_wrap=True)
    return made


def print_json(names: Sequence[str], found: "Sequence[Evaluation]") -> None:
    """Print what was measured as one object: by encoder, and of several subjects by their names."""
    rows = [{e: as_rows(m) for e, m in each.measures.items()} for each in found]
    console.print_json(
        json.dumps(rows[0] if len(rows) == 1 else dict(zip(names, rows, strict=True)))
    )


def encoded_by_ranks(
    names: Sequence[str], shards: Path, test: Path | None, settings: "EvalSettings"
) -> bool:
    """Have the ranks of torchrun share what is encoded; tell whether this one goes on, alone."""
    from ..device.handoff import find_device
    from ..evaluate import encode
    from ..train.world import rank_device, start_world

    kind = str(find_device(settings.device))
    with start_world(kind) as ranks, stopped(KEPT):
        own = replace(settings, device=str(rank_device(ranks, kind)))
        for name in names if ranks.size > 1 else ():
            with Measuring(show=False) as shown:
                encode(name, shards, test, own, progress=shown.encoded)
    return ranks.rank == 0


class Measuring:
    """What is seen of a subject while it is measured: how far it is on stderr, numbers on stdout.

    A bar while samples are encoded, none where features are kept already; then which protocol runs.
    """

    def __init__(self, *, show: bool) -> None:
        self._stack, self._show = ExitStack(), show
        self._update: Any = None

    def __enter__(self) -> "Measuring":
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def encoded(self, done: int, total: int) -> None:
        """Move the bar."""
        if self._update is None:
            self._update = self._stack.enter_context(bar("samples encoded"))
        self._update(completed=done, total=total)
        if done >= total:
            self._stack.close()
            self._update = None

    def begin(self, protocol: str) -> None:
        """Name a protocol, which may train for minutes."""
        self._stack.enter_context(notes.status(f"measuring {protocol.replace('_', ' ')}"))

    def say(self, protocol: str, found: "dict[str, tuple[Measure, ...]] | str") -> None:
        """Show what a protocol measured in the place of its name."""
        self._stack.close()
        if self._show:
            show_measures(protocol, found)


def as_rows(measures: "tuple[Measure, ...]") -> dict[str, dict[str, float | str | None]]:
    """Name -> value, interval, chance and protocol."""
    return {
        m.name: {
            "value": m.value, "interval": m.interval, "chance": m.chance, "protocol": m.protocol
        }
        for m in measures
    }  # fmt: skip


def show_measures(protocol: str, found: "dict[str, tuple[Measure, ...]] | str") -> None:
    """Print what a protocol measured: encoders side by side, the protocol's lines below."""
    if isinstance(found, str):
        said = f"{protocol}: left out: {found}"
        console.print(said, style="dim", highlight=False, soft_wrap=True)
        return
    columns = [encoder for encoder in ENCODERS if encoder in found]
    table = Table(protocol.replace("_", " "), *columns, "chance", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    first = found[columns[0]]
    values = {encoder: {m.name: m for m in found[encoder]} for encoder in columns}
    for measure in first:
        cells = [shown(values[encoder].get(measure.name)) for encoder in columns]
        chance = "" if measure.chance is None else f"{measure.chance:.3f}"
        table.add_row(measure.name, *cells, chance)
    console.print(table)
    for line in footnotes(first):
        console.print(line, style="dim", highlight=False, soft_wrap=True)


def footnotes(measures: "Sequence[Measure]") -> list[str]:
    """How all were measured; where they differ, each way behind the names, what they share once.

    A protocol is parts between semicolons.
    """
    names: dict[str, list[str]] = {}
    for measure in measures:
        names.setdefault(measure.protocol, []).append(measure.name)
    if len(names) == 1:
        return list(names)
    parts = {how: how.split("; ") for how in names}
    shared = [p for p in parts[measures[0].protocol] if all(p in other for other in parts.values())]
    own = {how: "; ".join(part for part in parts[how] if part not in shared) for how in names}
    lines = [f"{', '.join(names[how])}: {rest}" for how, rest in own.items() if rest]
    return [*lines, *([f"all: {'; '.join(shared)}"] if shared else [])]


def shown(measure: "Measure | None") -> str:
    """Write a number with its interval, if it has one; None: nothing."""
    if measure is None:
        return ""
    digits = 3 if abs(measure.value) < 10 else 1
    value = f"{measure.value:.{digits}f}"
    return value if measure.interval is None else f"{value} ± {measure.interval:.{digits}f}"
