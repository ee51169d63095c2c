"""The map as data: embedding.csv for any tool, scalars and the projector of TensorBoard."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..errors import ExtraError
from ..evaluate import Features
from ..evaluate.results import Evaluation
from ..modalities.image.decode import Pixels
from ..shards.side_files import written_whole
from .maps import stratified
from .neighbours import left_out
from .pictures import SampleFinder

FIELDS = ("checkpoint", "uid", "key", "label", "prediction", "x", "y")
I64 = npt.NDArray[np.int64]
SPRITE = 8192  # pixels a side, as the projector of TensorBoard takes it
SIDE = 48


@dataclass(frozen=True, slots=True)
class PlacedSamples:
    """The samples of one checkpoint's map, all columns of one length; labels are names."""

    checkpoint: str
    uids: I64
    keys: Sequence[str]
    labels: Sequence[str]
    predictions: Sequence[str]
    points: npt.NDArray[np.float64]  # (N, 2)


def names_for(numbers: Sequence[int], classes: Sequence[str]) -> list[str]:
    """Names of class numbers; the numbers themselves where there are no names; none: empty."""
    return ["" if n < 0 else classes[n] if n < len(classes) else str(n) for n in map(int, numbers)]


def write_csv(path: Path, maps: Sequence[PlacedSamples]) -> None:
    """Write a row per checkpoint and sample; what `maps.read_map` reads."""
    with written_whole(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(FIELDS)
        for placed in maps:
            columns = (placed.uids.tolist(), placed.keys, placed.labels, placed.predictions)
            for *told, (x, y) in zip(*columns, placed.points.tolist(), strict=True):
                rows.writerow((placed.checkpoint, *told, f"{x:.6g}", f"{y:.6g}"))


def log_evaluation(
    evaluation: Evaluation, folder: Path, *, step: int, points: int = 5000, seed: int = 0
) -> None:
    """Write the measures of `evaluation` as scalars, its features as an embedding, to TensorBoard.

    The projector shows at most `points` samples, the same for all steps of a run, with the columns
    key, label, prediction (k-NN) and correct, and with pictures where the samples are images.

    Raises:
        ExtraError: tensorboard is not installed.
        SslpipeError: the shards are not those that were evaluated.
    """
    writer = summary_writer(folder)
    try:
        for encoder, measures in evaluation.measures.items():
            for measure in measures:
                name = f"eval/{measure.name.replace(' ', '_')}/{encoder}"
                writer.add_scalar(name, measure.value, step)
        add_projector(writer, evaluation, step=step, points=points, seed=seed)
    finally:
        writer.close()


def summary_writer(folder: Path) -> Any:
    """Open TensorBoard's writer on a folder, which is made if need be.

    Raises:
        ExtraError: tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ExtraError(
            "report: tensorboard is not installed; pip install 'sslpipe[train]'"
        ) from error
    return SummaryWriter(str(folder))


def add_projector(
    writer: Any, evaluation: Evaluation, *, step: int, points: int, seed: int
) -> None:
    """Write the embedding: features, columns of metadata, and a square sprite."""
    bank = evaluation.features["trained"]
    rows = torch.from_numpy(stratified(bank, points, seed=seed))
    chosen, guessed = bank.at(rows), left_out(bank, rows).predicted
    with SampleFinder(evaluation.shards) as finder:
        pictured = finder.keyed_squares(chosen.uids.numpy(), side_for(len(rows)))
        images = stacked([picture for _, picture in pictured]) if finder.pictured else None
    writer.add_embedding(
        chosen.features,
        metadata=metadata(chosen, [key for key, _ in pictured], guessed.tolist()),
        metadata_header=["key", "label", "prediction", "correct"],
        label_img=images,
        tag="features",
        global_step=step,
    )


def metadata(features: Features, keys: Sequence[str], guessed: Sequence[int]) -> list[list[str]]:
    """The columns that the projector can colour by and search; tabs would end a column."""
    numbers = features.labels.tolist(), guessed
    columns = [names_for(each, features.classes) for each in numbers]
    correct = [str(a == b) for a, b in zip(*columns, strict=True)]
    rows = zip(keys, *columns, correct, strict=True)
    return [[" ".join(cell.split()) for cell in row] for row in rows]


def side_for(count: int) -> int:
    """Pixels of a picture, so that a square sprite of `count` stays within SPRITE."""
    return min(SIDE, SPRITE // max(1, int(np.ceil(np.sqrt(count)))))


def stacked(pictures: Sequence[Pixels]) -> torch.Tensor:
    """(N, 3, h, w) in [0, 1], as TensorBoard wants them."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
