"""The curves of a run, from the metrics.jsonl beside its checkpoint, and what its alarm says."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..evaluate.results import Evaluation
from ..pipeline import load
from ..recipe.schema import StreamSection
from ..train import initial_method
from ..train.alarm import Alarm
from ..train.log import LoggedRow, rows_until
from ..train.record import METRICS

LAST = 2**62  # every step
TITLES = {  # of a logged row, in the order in which people look
    "loss": "loss",
    "lr": "learning rate",
    "feature_std": "spread of features (std)",
    "feature_rankme": "effective rank of features",
    "data_lost": "time lost to data",
}
WIDTH, HEIGHT, EDGE = 300.0, 110.0, 4.0  # of a drawing, in its own units


@dataclass(frozen=True, slots=True)
class Run:
    """The logged rows of a run, and the messages of its alarm."""

    folder: Path
    rows: tuple[LoggedRow, ...]
    alarms: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Curve:
    """One run in a chart: an SVG path, and its first and last value."""

    path: str
    first: float
    last: float
    points: int


@dataclass(frozen=True, slots=True)
class Chart:
    """One number over the epochs of all runs. `lines`: None for a run that did not log it."""

    title: str
    lines: tuple[Curve | None, ...]
    low: float
    high: float
    epochs: float


def run_folder(evaluation: Evaluation) -> Path | None:
    """The folder whose metrics.jsonl belongs to a checkpoint; None: there is none."""
    place = Path(evaluation.subject.name)
    folder = place if place.is_dir() else place.parent
    return folder if (folder / METRICS).is_file() else None


def read_runs(evaluations: Sequence[Evaluation]) -> list[Run]:
    """The runs that the checkpoints come from, each once."""
    found: dict[Path, Run] = {}
    for evaluation in evaluations:
        folder = run_folder(evaluation)
        if folder is not None and folder not in found:
            rows = tuple(rows_until(folder / METRICS, LAST))
            found[folder] = Run(folder, rows, alarms_of(evaluation, rows))
    return list(found.values())


def alarms_of(evaluation: Evaluation, rows: Sequence[LoggedRow]) -> tuple[str, ...]:
    """Read the rows with the alarm that watched the run, whose limits are the method's own."""
    recipe = evaluation.subject.recipe
    if recipe.train is None or recipe.method is None:
        return ()
    # the stream of the run may be a mixture, of which these shards are one part
    stream = StreamSection(batch_size=recipe.stream.batch_size, allow_repeats=True)
    plain = recipe.model_copy(update={"stream": stream})
    with load(plain, shards=evaluation.shards, device="cpu", rank=0, world_size=1) as pipeline:
        method = initial_method(recipe, pipeline.spec)
    alarm = Alarm(method, warmup_epochs=recipe.train.warmup_epochs)
    return tuple(message for row in rows for message in alarm.read(row))


def charts(runs: Sequence[Run]) -> list[Chart]:
    """A chart for each of TITLES that a run has logged at least twice."""
    made = [chart(name, title, runs) for name, title in TITLES.items()]
    return [each for each in made if any(each.lines)]


def chart(name: str, title: str, runs: Sequence[Run]) -> Chart:
    """Draw one number of all runs in one scale, from its least to its most."""
    series = [points_of(run.rows, name) for run in runs]
    values = [value for points in series for _, value in points]
    epochs = max((epoch for points in series for epoch, _ in points), default=0.0)
    low, high = min(values, default=0.0), max(values, default=0.0)
    lines = tuple(line_of(points, epochs, low, high) for points in series)
    return Chart(title, lines, low, high, epochs)


def points_of(rows: Sequence[LoggedRow], name: str) -> list[tuple[float, float]]:
    """(epoch, value) of the rows that have a finite one; in the file, others are null."""
    found = [(row["epoch"], row.get(name)) for row in rows]
    return [(float(e), float(v)) for e, v in found if v is not None and math.isfinite(v)]


def line_of(
    points: Sequence[tuple[float, float]], epochs: float, low: float, high: float
) -> Curve | None:
    """A path through the points; None: fewer than two."""
    if len(points) < 2:
        return None
    across = (WIDTH - 2 * EDGE) / max(epochs, 1e-12)
    up = (HEIGHT - 2 * EDGE) / (high - low) if high > low else 0.0
    middle = 0.0 if high > low else HEIGHT / 2 - EDGE
    spots = [
        f"{EDGE + epoch * across:.1f} {HEIGHT - EDGE - middle - (value - low) * up:.1f}"
        for epoch, value in points
    ]
    return Curve("M" + "L".join(spots), points[0][1], points[-1][1], len(points))
