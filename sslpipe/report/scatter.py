"""The map of the page: circles of every checkpoint, their pictures, and what a hover tells."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..evaluate import Features
from .embedding import PlacedSamples, names_for
from .maps import on_sphere, planes, read_map, stratified, turned
from .pictures import SHEET, SIDES, SampleFinder, Sprites, sprites
from .samples import Look, ReportSettings, look_at
from .tables import short_names

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
COLOURS = 10  # labels that colours tell apart; of more classes, points show right and wrong only
SIZE, EDGE = 400.0, 8.0  # of a panel, in its own units


@dataclass(frozen=True, slots=True)
class Panel:
    """One map: its title, and x, y, colour and right / wrong / none of each point."""

    title: str
    circles: tuple[tuple[float, float, int, str], ...]


@dataclass(frozen=True, slots=True)
class Scatter:
    """All maps of a page; point i of each is the same sample."""

    panels: tuple[Panel, ...]
    classes: tuple[str, ...]  # of the points, by colour; empty: no labels
    coloured: bool  # whether they are few enough for colours
    sprites: Sprites | None  # None: the samples have no pictures
    data: Mapping[str, Any]  # for the script
    placed: tuple[PlacedSamples, ...]
    projection: str


def scatter(seen: Sequence[Look], finder: SampleFinder, settings: ReportSettings) -> Scatter:
    """Lay out the samples of the map, with the encoder of each checkpoint.

    Raises:
        SslpipeError: fewer than three samples, or the shards lack one of them.
    """
    asked = seen[0].asked
    rows = stratified(asked, settings.points, seed=settings.seed)
    chosen = asked.at(torch.from_numpy(rows))
    maps = maps_of(seen, rows, chosen, settings)
    pictured = finder.keyed_squares(chosen.uids.numpy(), SIDES[0])
    placed = placed_samples(seen, rows, [key for key, _ in pictured], maps)
    colours = np.unique(chosen.labels[chosen.labels >= 0].numpy()).tolist()
    classes = tuple(names_for(colours, asked.classes))
    made = None
    if finder.pictured:
        made = sprites([picture for _, picture in pictured], budget=settings.picture_bytes)
    drawn = *placed, *untrained_map(seen[0], chosen, placed[0])
    return Scatter(
        tuple(panel(table, classes) for table in drawn),
        classes,
        0 < len(classes) <= COLOURS,
        made,
        told(drawn, classes, made),
        placed,
        settings.projection,
    )


def maps_of(
    seen: Sequence[Look], rows: I64, chosen: Features, settings: ReportSettings
) -> list[F64]:
    """Coordinates (N, 2) of the same samples by each checkpoint."""
    uids = chosen.uids.numpy()
    previous = None if settings.previous is None else read_map(settings.previous, uids)
    clouds = [on_sphere(look.asked, rows) for look in seen]
    return planes(clouds, projection=settings.projection, previous=previous)


def placed_samples(
    seen: Sequence[Look], rows: I64, keys: Sequence[str], maps: Sequence[F64]
) -> tuple[PlacedSamples, ...]:
    """The map of each checkpoint as a table, with the names of labels and predictions."""
    names = short_names([look.evaluation.subject.name for look in seen])
    return tuple(
        PlacedSamples(
            name,
            look.asked.uids.numpy()[rows],
            keys,
            names_for(look.asked.labels.numpy()[rows].tolist(), look.asked.classes),
            names_for(look.nearest.predicted.numpy()[rows].tolist(), look.asked.classes),
            points,
        )
        for look, name, points in zip(seen, names, maps, strict=True)
    )


def panel(table: PlacedSamples, classes: Sequence[str]) -> Panel:
    """Draw the map of a checkpoint."""
    right = [p == label for p, label in zip(table.predictions, table.labels, strict=True)]
    return Panel(table.checkpoint, circles(table.points, table.labels, right, classes))


def untrained_map(seen: Look, chosen: Features, first: PlacedSamples) -> list[PlacedSamples]:
    """The same samples by the untrained encoder: PCA, turned to lie as the first map does."""
    if "untrained" not in seen.evaluation.features:
        return []
    look = look_at(seen.evaluation, chosen.uids, "untrained")
    rows = np.arange(len(chosen.uids))
    (flat,) = planes([on_sphere(look.asked, rows)], projection="pca")
    (placed,) = placed_samples([look], rows, first.keys, [turned(flat, first.points)])
    return [replace(placed, checkpoint="untrained")]


def circles(
    points: F64, labels: Sequence[str], right: Sequence[bool], classes: Sequence[str]
) -> tuple[tuple[float, float, int, str], ...]:
    """Points in the units of a panel, with one scale for both axes; y goes up."""
    low, high = points.min(axis=0), points.max(axis=0)
    scale = (SIZE - 2 * EDGE) / max(float((high - low).max()), 1e-12)
    spots = (points - (low + high) / 2) * scale * (1, -1) + SIZE / 2
    number = {name: colour for colour, name in enumerate(classes)}
    return tuple(
        (round(x, 1), round(y, 1), number.get(label, -1), ("ok" if good else "no") if label else "")
        for (x, y), label, good in zip(spots.tolist(), labels, right, strict=True)
    )


def told(
    placed: Sequence[PlacedSamples], classes: Sequence[str], made: Sprites | None
) -> Mapping[str, Any]:
    """What the script says of point i: its key, label, predictions, and where its picture lies."""
    names = list(dict.fromkeys([*classes, *(p for table in placed for p in table.predictions)]))
    number = {name: i for i, name in enumerate(names)}
    return {
        "keys": list(placed[0].keys),
        "names": names,
        "labels": [number.get(label, -1) for label in placed[0].labels],
        "predictions": [[number[p] if p else -1 for p in table.predictions] for table in placed],
        "side": made.side if made else 0,
        "columns": made.columns if made else 1,
        "sheet": SHEET,
    }
