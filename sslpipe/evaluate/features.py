"""Frozen features of a data set: what every protocol of this room starts from."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..batch import Batch
from ..device.handoff import find_device
from ..encoders.monitors import evaluating
from ..errors import ContractError, SslpipeError
from ..modalities.parts import find_modality
from ..pipeline import Pipeline, load
from ..recipe import Recipe
from ..recipe.names import suggest
from ..recipe.schema import StreamSection
from ..shards.manifest import Manifest
from .classes import Names, class_names, join

log = logging.getLogger(__name__)
NONE = torch.empty(0)


@dataclass(frozen=True, slots=True)
class Features:
    """Features (N, D) float32 on the CPU, labels (N,) int64 with -1 = none, uids (N,) int64.

    `classes`: the names of labels 0, 1, ..., by which the labels of two sets are joined; empty:
    the labels are plain numbers. `contents` (N,) int64: equal where the bytes of two samples are.
    `blocks` (N, L, D): the class token after each of the last L blocks, the last one last.
    `patches` (N, D): the mean of the patch tokens. These three are empty, (0,), where they are not
    known or the encoder has no such thing.

    Raises:
        SslpipeError: a feature is not finite; every protocol would give a wrong number silently.
    """

    features: Tensor
    labels: Tensor
    uids: Tensor
    classes: Names = ()
    contents: Tensor = NONE
    blocks: Tensor = NONE
    patches: Tensor = NONE

    def __post_init__(self) -> None:
        bad = self.uids[~self.features.isfinite().all(dim=1)]
        if len(bad):
            raise SslpipeError(
                f"evaluation: the features of uid {int(bad[0])} are not finite ({len(bad)} of "
                f"{len(self.uids)} samples); check the encoder's weights, or encode in float32"
            )

    def labelled(self) -> "Features":
        """The samples that have a label.

        Raises:
            SslpipeError: none has.
        """
        keep = self.labels >= 0
        if not keep.any():
            raise SslpipeError(
                f"evaluation: none of the {len(self.labels)} samples has a label; "
                "pack the shards from class folders, or with .cls members"
            )
        return self.at(keep)

    def at(self, rows: Tensor) -> "Features":
        """Some of the samples, by number or by a mask."""
        columns = (self.contents, self.blocks, self.patches)
        known = (column[rows] if len(column) else column for column in columns)
        taken = self.features[rows], self.labels[rows], self.uids[rows], self.classes
        return Features(*taken, *known)

    def arrays(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Features as float64 and labels, for scikit-learn."""
        return self.features.double().numpy(), self.labels.numpy()


def extract(
    encoder: nn.Module,
    batches: Iterable[Batch],
    device: torch.device | str,
    group: str = "global",
    *,
    autocast: torch.dtype | None = None,
    classes: Names | None = None,
) -> Features:
    """Encode the first view of `group` of every valid sample.

    The encoder is moved to `device`. `autocast` (e.g. torch.bfloat16) is the precision of its
    forward pass; None: float32. `classes` names the labels; None: as the manifest behind the
    batches does, if they are those of a pipeline.

    Raises:
        ContractError: the batches hold no such group.
        SslpipeError: there are no batches, or a feature is not finite.
    """
    device = find_device(device)
    encoder.to(device)
    rows = []
    with evaluating(encoder), torch.autocast(device.type, autocast, enabled=bool(autocast)):
        for batch in batches:
            images_BCHW = first_view(batch.in_float32(), group).to(device, non_blocking=True)
            columns = encoder(images_BCHW).float().cpu(), batch.labels.cpu(), batch.uids.cpu()
            rows.append([column[batch.valid] for column in columns])
    if not rows:
        raise SslpipeError("evaluation: there are no batches; check the shards and the batch size")
    features, labels, uids = (torch.cat(column) for column in zip(*rows, strict=True))
    return Features(features, labels, uids, class_names(batches) if classes is None else classes)


def matched(bank: Features, queries: Features) -> Features:
    """The queries with the bank's class numbers, those of other classes left out.

    What only one of the two has is logged.

    Raises:
        SslpipeError: no class name is in both.
    """
    joined = join(bank, queries)
    if joined.said:
        log.warning("evaluation: %s", joined.said)
    return replace(queries, labels=joined.labels, classes=joined.classes).labelled()


def first_view(batch: Batch, group: str) -> Tensor:
    """(B, C, H, W): view 0 of a group.

    Raises:
        ContractError: the batch holds no such group.
    """
    if group not in batch.views:
        raise ContractError(
            f"evaluation: no view group {group!r}; {suggest(group, batch.views)}. Name one of them"
        )
    return batch.views[group][0]


def central(recipe: Recipe, *, batch_size: int = 256) -> Recipe:
    """The recipe with the view that its modality evaluates on: an image's central crop."""
    return recipe.model_copy(
        update={
            "stream": StreamSection(batch_size=batch_size, order="sequential", on_bad="raise"),
            "views": find_modality(recipe.modality, recipe.path).evaluation_views(recipe),
            "masks": {},
            "targets": {},
        }
    )


def central_batches(
    recipe: Recipe, *, shards: str | Path | Manifest, device: torch.device | str
) -> Pipeline:
    """Iterate once for every sample of `shards`; the last batch may be smaller."""
    return load(central(recipe), shards=shards, device=device, rank=0, world_size=1)
