"""Evaluation while a run trains: the protocols of `sslpipe eval`, on part of a labelled set.

It is the `Monitor` that the trainer asks at ends of epochs (train/monitoring.py). The samples are
chosen once, by (seed, uid): the same for every epoch, run, machine and order of shards, so the
numbers of one run, and of two, can be compared.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import nn

from ..errors import RecipeError, SslpipeError
from ..pipeline import load
from ..recipe import Recipe
from ..recipe.names import suggest
from ..recipe.schema import MonitorSection
from ..rng import words64
from ..shards.contents import index_of, labels_kept
from ..shards.manifest import Manifest, open_manifest
from ..stream.open_source import Shards
from .classes import difference, join
from .features import Features, central, extract
from .knn import knn, leave_one_out
from .linear import cross_validated, linear
from .results import Measure

SEED = 0  # of the choice of samples: not the run's, so that runs of several seeds are compared
BATCH = 256  # images encoded at once, at most
Measuring = Callable[[Features, Features | None], tuple[Measure, ...]]


def knn_measures(train: Features, test: Features | None) -> tuple[Measure, ...]:
    """Weighted k-NN with the settings of `sslpipe eval`; without a test set, leave-one-out."""
    found = leave_one_out(train) if test is None else knn(train, test)
    how = f"weighted k-NN (k={found.k}, T={found.temperature:g})"
    measures = (Measure("knn top-1", found.top1, how),)
    return measures if found.top5 is None else (*measures, Measure("knn top-5", found.top5, how))


def linear_measures(train: Features, test: Features | None) -> tuple[Measure, ...]:
    """Logistic regression with C = 1, where `eval` chooses C; without a test set, by folds."""
    found = cross_validated(train) if test is None else linear(train, test)
    return (Measure("linear top-1", found.top1, found.protocol),)


PROTOCOLS: Mapping[str, Measuring] = {"knn": knn_measures, "linear": linear_measures}


@dataclass(frozen=True, slots=True)
class TrainingMonitor:
    """Evaluates an encoder of `recipe` by the protocols of `settings`.

    `bank`, `test`: what of the sets is encoded; without a test set, samples are left out in turn.
    """

    recipe: Recipe
    settings: MonitorSection
    bank: Manifest
    test: Manifest | None
    line: str

    def __call__(self, encoder: nn.Module) -> dict[str, float]:
        """Numbers such as `knn_top1`, in the order of the protocols.

        Raises:
            SslpipeError: a feature is not finite, or a protocol cannot use the set.
            ShardError: a sample cannot be read.
        """
        train = self._features(encoder, self.bank)
        test = None if self.test is None else self._features(encoder, self.test)
        if test is not None:
            joined = join(train, test)  # what only one set has was said at the start
            test = replace(test, labels=joined.labels, classes=joined.classes)
        found = [m for name in self.settings.protocols for m in PROTOCOLS[name](train, test)]
        return {m.name.replace("top-", "top").replace(" ", "_"): m.value for m in found}

    def _features(self, encoder: nn.Module, part: Manifest) -> Features:
        """Encode the central views where the encoder is."""
        device = next(encoder.parameters()).device
        recipe = central(self.recipe, batch_size=min(BATCH, self.recipe.stream.batch_size))
        with load(recipe, shards=part, device=device, rank=0, world_size=1, epochs=1) as batches:
            return extract(encoder, batches, device)


def monitor_of(
    recipe: Recipe,
    *,
    shards: Shards,
    monitor: str | Path | None = None,
    test: str | Path | None = None,
) -> TrainingMonitor | None:
    """What evaluates a run over `shards`; None if neither the recipe nor the arguments ask for it.

    monitor: the labelled set; None: what the run trains on. test: another one to test on.

    Raises:
        RecipeError: an unknown protocol.
        ShardError: a set is missing, cut, or empty.
        SslpipeError: a set has no labels or a single class, the two share no class, or it is not
            said which of several sets is meant.
    """
    asked = recipe.train.monitor if recipe.train else None
    if asked is None and monitor is None and test is None:
        return None
    settings = asked or MonitorSection()
    check_protocols(recipe)
    given = shards if monitor is None else monitor
    if not isinstance(given, str | Path):
        raise SslpipeError(
            "train.monitor: the run trains on several sets or on an iterable, whose labels do not "
            "serve; name a labelled set (--monitor SHARDS), or take train.monitor out"
        )
    bank, bank_line = labelled_part(given, settings.samples)
    queries, test_line = labelled_part(test, settings.samples) if test else (None, "")
    said = ""
    if queries is not None and bank.classes and queries.classes:
        said = difference(bank.classes, queries.classes).said
    names = ", ".join(settings.protocols)
    tested = f"tested on {test_line}" if test else "samples left out in turn"
    line = f"{names} of {bank_line}; {tested}{f'; {said}' if said else ''}"
    return TrainingMonitor(recipe, settings, bank, queries, line)


def check_protocols(recipe: Recipe) -> None:
    """Check the names in `train.monitor.protocols`, if there are any.

    Raises:
        RecipeError: an unknown one.
    """
    asked = recipe.train.monitor if recipe.train else None
    for name in asked.protocols if asked else ():
        if name not in PROTOCOLS:
            where = recipe.where("train", "monitor", "protocols")
            raise RecipeError(
                f"{where}: train.monitor.protocols: unknown protocol {name!r}; "
                f"{suggest(name, PROTOCOLS)}"
            )


def labelled_part(path: str | Path, count: int) -> tuple[Manifest, str]:
    """Leave all but `count` labelled samples of a set out; also say in words what is left.

    Only the indexes are read. Which samples are left depends on their uids alone.

    Raises:
        ShardError: the set or an index is missing or damaged.
        SslpipeError: fewer than two samples have labels, or all of them the same.
    """
    manifest = open_manifest(path)
    uids = np.concatenate([index_of(manifest, s).samples["uid"] for s in manifest.shards])
    all_labels = np.concatenate([labels_kept(manifest, shard) for shard in manifest.shards])
    keep = taken_by_key(uids, all_labels, count)
    if len(np.unique(all_labels[keep])) < 2:
        known = int((all_labels >= 0).sum())
        raise SslpipeError(
            f"{path}: cannot be a monitor's set: {known:,} of {len(uids):,} samples have a label"
            f"{', all the same' if known > 1 else ''}; give a labelled set of two classes or more "
            "(--monitor SHARDS), or take train.monitor out"
        )
    ends = np.cumsum([shard.samples for shard in manifest.shards])[:-1]
    left_out = [np.flatnonzero(~part) for part in np.split(keep, ends)]
    exclude = {
        shard.file: tuple(rows.tolist())
        for shard, rows in zip(manifest.shards, left_out, strict=True)
        if len(rows)
    }
    kept, labelled = int(keep.sum()), int((all_labels >= 0).sum())
    line = f"{kept:,} of {labelled:,} labelled samples of {manifest.name} ({manifest.fingerprint})"
    return replace(manifest, exclude=exclude), line


def taken_by_key(
    uids: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], count: int
) -> npt.NDArray[np.bool_]:
    """Tell which samples are taken: `count` labelled ones at most, by a keyed draw of each uid."""
    keys = words64(uids, seed=SEED, stream="monitor")
    known = np.flatnonzero(labels >= 0)
    keep = np.zeros(len(uids), dtype=np.bool_)
    keep[known[keys[known].argsort(kind="stable")[:count]]] = True
    return keep
