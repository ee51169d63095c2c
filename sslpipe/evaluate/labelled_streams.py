"""Labelled samples of packed sets, and streams of some of them: what trained protocols learn from.

A stream is restricted by a manifest in memory that excludes all other rows. Nothing is written, and
the stream stays what it is: exact, resumable, and the same for any number of workers.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import SslpipeError
from ..recipe import Recipe
from ..recipe.names import Entry
from ..recipe.schema import StreamSection, ViewSection
from ..rng import words64
from ..shards.manifest import Manifest, open_manifest
from ..shards.read.store import open_store
from .classes import Names, join
from .features import central

I64 = npt.NDArray[np.int64]
HELD_OUT = 5  # one in so many


@dataclass(frozen=True, slots=True)
class LabelledSamples:
    """Labelled samples of a packed set as its indexes list them, in the order of the tars.

    shards, rows (N,): where they lie. labels, uids, contents (N,) int64; `contents` are equal where
    size and CRC-32 of the bytes are.
    """

    manifest: Manifest
    shards: I64
    rows: I64
    labels: Tensor
    uids: Tensor
    contents: Tensor

    @property
    def classes(self) -> Names:
        """The names of labels 0, 1, ...; empty: they are plain numbers."""
        return self.manifest.classes

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, keep_N: Tensor) -> "LabelledSamples":
        """Take the samples where the mask, (N,) bool, is true."""
        keep = keep_N.numpy()
        columns = (self.labels[keep_N], self.uids[keep_N], self.contents[keep_N])
        return LabelledSamples(self.manifest, self.shards[keep], self.rows[keep], *columns)

    def restricted(self) -> Manifest:
        """The manifest of these samples alone; it has a fingerprint of its own."""
        exclude = {}
        for number, shard in enumerate(self.manifest.shards):
            others = np.setdiff1d(np.arange(shard.samples), self.rows[self.shards == number])
            exclude[shard.file] = tuple(others.tolist())
        return replace(
            self.manifest, exclude={file: rows for file, rows in exclude.items() if rows}
        )


@dataclass(frozen=True, slots=True)
class Split:
    """What is learned from and what is tested on; `test.labels` have the numbers of `train`.

    `said`: how the test samples were found, in words.
    """

    train: LabelledSamples
    test: LabelledSamples
    said: str

    @property
    def outputs(self) -> int:
        """Class numbers that a head must know."""
        return int(self.train.labels.max()) + 1

    @property
    def classes(self) -> int:
        """How many classes the training samples are of."""
        return len(torch.unique(self.train.labels))

    @property
    def chance(self) -> float:
        """What guessing one of the classes of the training samples gives."""
        return 1 / self.classes


def list_labelled(shards: str | Path) -> LabelledSamples:
    """List the labelled samples of a packed set that are not excluded.

    Raises:
        ShardError: the manifest or an index is missing or damaged.
        SslpipeError: no sample has a label.
    """
    manifest = open_manifest(shards)
    store = open_store(manifest)
    columns: list[tuple[I64, ...]] = []
    try:
        for number, shard in enumerate(manifest.shards):
            index = store.index(number)
            keep = index.samples["label"] >= 0
            keep[list(manifest.exclude.get(shard.file, ()))] = False
            payloads = index.payloads
            contents = payloads["size"].astype(np.int64) << 32 | payloads["crc"]
            rows = np.flatnonzero(keep)
            kept = (index.samples["label"][rows], index.samples["uid"][rows], contents[rows])
            columns.append((np.full(len(rows), number), rows, *kept))
    finally:
        store.close()
    where, rows, labels, uids, contents = (
        np.concatenate(column).astype(np.int64) for column in zip(*columns, strict=True)
    )
    if not len(rows):
        raise SslpipeError(
            f"{manifest.root}: none of {manifest.samples} samples has a label; pack the shards "
            "from class folders, or with .cls members"
        )
    tensors = (torch.from_numpy(column) for column in (labels, uids, contents))
    return LabelledSamples(manifest, where, rows, *tensors)


def chosen_by_class(
    labels_N: Tensor, ids_N: Tensor, count: Callable[[int], int], *, seed: int, stream: str
) -> Tensor:
    """Choose samples of each class by keyed draws: a mask (N,), whatever the order of the samples.

    `count` tells how many ids of a class to take, of how many it has. Samples of equal id are
    chosen together.
    """
    chosen = torch.zeros(len(labels_N), dtype=torch.bool)
    keys_N = words64(ids_N.numpy(), seed=seed, stream=stream)
    for label in torch.unique(labels_N):
        here = torch.nonzero(labels_N == label)[:, 0]
        keys, drawn = np.unique(keys_N[here.numpy()], return_inverse=True)
        chosen[here] = torch.from_numpy(drawn < count(len(keys)))
    return chosen


def share_of_labels(samples: LabelledSamples, fraction: float, *, seed: int) -> LabelledSamples:
    """A share of the labels, as many of each class (all of a smaller one), keyed by (seed, uid).

    SimCLR's lists of 1 % and 10 % of ImageNet are balanced in this way; they are fixed lists, and
    these are draws.
    """
    classes = len(torch.unique(samples.labels))
    each = max(1, round(fraction * len(samples) / classes))
    keep = chosen_by_class(
        samples.labels, samples.uids, lambda _: each, seed=seed, stream="evaluate/few labels"
    )
    return samples.at(keep)


def split_of(shards: str | Path, test: str | Path | None, *, seed: int) -> Split:
    """The samples to learn from and those to test on, joined by the names of their classes.

    Without a test set a fifth of each class is held out, keyed by (seed, content): copies of a
    sample stay on one side.

    Raises:
        ShardError: a set is missing or damaged.
        SslpipeError: a set has no labels, they share no class, or there is one class only.
    """
    listed = list_labelled(shards)
    if test is None:
        held_out = chosen_by_class(
            listed.labels,
            listed.contents,
            lambda n: round(n / HELD_OUT) if n >= HELD_OUT else min(1, n - 1),
            seed=seed,
            stream="evaluate/held out",
        )
        split = Split(
            listed.at(~held_out), listed.at(held_out), f"held-out fifth keyed by seed {seed}"
        )
    else:
        split = joined_split(listed, list_labelled(test))
    require_two_classes(split, shards)
    return split


def joined_split(train: LabelledSamples, test: LabelledSamples) -> Split:
    """Test on another set; its samples of other classes are left out.

    Raises:
        SslpipeError: no class name is in both.
    """
    joined = join(train, test)
    tested = replace(test, labels=joined.labels).at(joined.labels >= 0)
    copies = int(torch.isin(tested.contents, train.contents).sum())
    words = ("test set", joined.said, f"{copies} copies of training samples" if copies else "")
    return Split(train, tested, "; ".join(word for word in words if word))


def require_two_classes(split: Split, shards: str | Path) -> None:
    """Check that there is something to tell apart, and something to test on.

    Raises:
        SslpipeError: fewer than two classes, or no test sample.
    """
    if split.classes < 2 or not len(split.test):
        raise SslpipeError(
            f"{shards}: {len(split.train)} training samples are of {split.classes} class(es), with "
            f"{len(split.test)} test samples; evaluate on two classes or more, of two samples each"
        )


def augmented(
    recipe: Recipe,
    *,
    batch_size: int,
    seed: int,
    remainder: Literal["wrap", "drop"],
    resample: str,
    jitter: float = 0.0,
    erase: float = 0.0,
) -> Recipe:
    """The recipe with one random view of a sample, as large and normalised as its central view.

    Random resized crops of 8 to 100 % of the area and flips; `jitter` is the strength of
    brightness, contrast and saturation; `erase` the share of views of which a box is erased.

    Raises:
        SslpipeError: the modality's central view is no crop of a picture.
    """
    crop, *rest = central(recipe).views["global"].ops
    if crop.name != "CenterCrop":
        raise SslpipeError(
            f"{recipe.where('modality')}: modality = {recipe.modality!r} is evaluated on "
            f"{crop.name}, and trained protocols crop and flip pictures; use the protocols "
            "on frozen features"
        )
    random_crop = {"size": crop.settings["size"], "scale": (0.08, 1.0), "resample": resample}
    colours = dict.fromkeys(("brightness", "contrast", "saturation"), jitter)
    ops = (
        Entry("RandomResizedCrop", random_crop),
        Entry("RandomHorizontalFlip", {"p": 0.5}),
        *([Entry("ColorJitter", colours)] if jitter else []),
        *rest,
        *([Entry("RandomErasing", {"p": erase, "scale": (0.02, 1 / 3)})] if erase else []),
    )
    return recipe.model_copy(
        update={
            "stream": StreamSection(batch_size=batch_size, seed=seed, remainder=remainder),
            "views": {"global": ViewSection(ops=ops)},
            "masks": {},
            "targets": {},
        }
    )
