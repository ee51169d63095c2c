"""`sslpipe pseudo-label`: the samples of a packed set that have no label get one, in a file."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..batch import Batch
from ..device.handoff import find_device
from ..errors import SslpipeError
from ..recipe import Recipe
from ..shards.labels_file import LabelRow, LabelTable, label_table, read_labels
from ..shards.manifest import read_manifest
from ..train import load_encoder
from .classes import class_names, names_of
from .features import Features, central_batches, extract
from .pseudo_labels import PseudoLabels, PseudoLabelSettings, predict


@dataclass(frozen=True, slots=True)
class Labelling:
    """A table to be written, and where its rows are from."""

    table: LabelTable
    known: int  # labels that the probe was fitted on
    predicted: int  # samples that had none
    kept: int  # of them, the surest, which the table labels
    temperature: float


def label_shards(
    checkpoint: str | Path,
    shards: str | Path,
    out: str | Path,
    *,
    known: str | Path | None = None,
    labels: str | Path | None = None,
    share: float = 0.5,
    device: str | None = None,
) -> Labelling:
    """Predict labels of the samples of `shards` that have none, and keep the surest `share`.

    The labels that teach are those of the set `known`, or of `shards` themselves. `labels`: a file
    of further labels of samples of `shards`, which teach as well; its rows are in the table, too.
    `out`: what errors and the table call the file to be written.

    Raises:
        StateError: the checkpoint is missing or damaged.
        ShardError: no shards, or a file of labels that is damaged or of other samples or classes.
        SslpipeError: no labels, one class, or every sample has one.
    """
    settings = PseudoLabelSettings(share=share)
    given = read_labels(labels) if labels else None
    if given and not known:
        given.numbered(read_manifest(shards).classes)  # a wrong name is found before features are
    chosen = find_device(device)
    encoder, recipe = load_encoder(checkpoint)
    if known:
        with central_batches(recipe, shards=known, device=chosen):
            pass  # another modality, or no set, is found before features are, too
    features, keys = keyed_features(encoder, recipe, shards, chosen)
    own = names_of(features.classes, features.labels)
    if given:
        features = labelled_by(features, given)
    teacher = features
    if known:
        teacher, _ = keyed_features(encoder, recipe, known, chosen)
        teacher = together(teacher.labelled(), features)
    predicted = predict(teacher, features.at(features.labels < 0), settings)
    kept = predicted.confident(share)
    rows = [*rows_of(kept, keys), *(given.rows if given else ())]
    table = label_table(str(out), rows)
    table.numbered(own)  # raises where the shards have no such class
    count = int((teacher.labels >= 0).sum())
    return Labelling(table, count, len(predicted.uids), len(kept.uids), predicted.temperature)


def keyed_features(
    encoder: nn.Module, recipe: Recipe, shards: str | Path, device: torch.device
) -> tuple[Features, dict[int, str]]:
    """The features of all samples, and the key of each uid."""
    keys: dict[int, str] = {}
    with central_batches(recipe, shards=shards, device=device) as batches:
        noted = noting(batches, keys)
        return extract(encoder, noted, device, classes=class_names(batches)), keys


def noting(batches: Iterable[Batch], keys: dict[int, str]) -> Iterator[Batch]:
    """The batches; the keys of their samples are written down on the way."""
    for batch in batches:
        keys.update(zip(batch.uids.tolist(), batch.keys, strict=True))
        yield batch


def labelled_by(features: Features, table: LabelTable) -> Features:
    """The samples with the labels of a table, which go before their own.

    Raises:
        ShardError: the table names a sample or, where the features have classes, a class that they
            do not have.
    """
    table.check_samples(features.uids.numpy(), f"the {len(features.uids):,} that were encoded")
    own = names_of(features.classes, features.labels)
    numbers, classes = table.numbered(own)
    number = dict(zip(table.uids.tolist(), numbers.tolist(), strict=True))
    pairs = zip(features.uids.tolist(), features.labels.tolist(), strict=True)
    labels = np.array([number.get(uid, label) for uid, label in pairs], dtype=np.int64)
    return replace(features, labels=torch.from_numpy(labels), classes=classes)


def together(known: Features, others: Features) -> Features:
    """The labelled samples of both sets, in the class numbers of the first.

    Raises:
        SslpipeError: the others name a class that the first set does not.
    """
    others = others.at(others.labels >= 0)
    if not len(others.labels):
        return known
    names, more = names_of(known.classes, known.labels), names_of(others.classes, others.labels)
    unknown = [name for name in more if name not in names]
    if unknown:
        raise SslpipeError(
            f"pseudo-labels: class {unknown[0]!r} of the shards is none of those that teach; teach "
            "with sets of the same classes"
        )
    number = torch.tensor([names.index(name) for name in more])
    new = ~torch.isin(others.uids, known.uids)
    return Features(
        torch.cat([known.features, others.features[new]]),
        torch.cat([known.labels, number[others.labels[new]]]),
        torch.cat([known.uids, others.uids[new]]),
        names,
    )


def rows_of(found: PseudoLabels, keys: dict[int, str]) -> Iterator[LabelRow]:
    """Yield the row of each predicted sample; `keys` names the samples by uid."""
    columns = found.uids.tolist(), found.labels.tolist(), found.confidences.tolist()
    for uid, label, confidence in zip(*columns, strict=True):
        name = found.classes[label] if found.classes else str(label)
        yield LabelRow(uid, keys[uid], name, confidence)
