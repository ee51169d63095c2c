"""Frozen features of a data set: what every protocol of this room starts from."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
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
from ..modalities.finding import modality_of
from ..pipeline import Pipeline, load
from ..recipe import Recipe
from ..recipe.names import suggest
from ..recipe.schema import StreamSection
from ..rng import splitmix64
from ..shards.manifest import Manifest
from ..stream.packed import Packed
from .classes import Names, class_names, join
from .encoding import NONE, Shown, encoded, on_host

log = logging.getLogger(__name__)


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

    def by_uid(self) -> "Features":
        """The samples by ascending uid, so that sums round alike, whatever the order of rows."""
        return self.at(self.uids.argsort(stable=True))

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
    """Encode the first view of `group` of every valid sample; `extract_all` of one encoder.

    Raises:
        ContractError: the batches hold no such group.
        SslpipeError: there are no batches, the encoder takes no views of their size, or a feature
            is not finite.
    """
    found = extract_all(
        {"encoder": encoder}, batches, device, group, autocast=autocast, classes=classes
    )
    return found["encoder"]


def extract_all(
    encoders: Mapping[str, nn.Module],
    batches: Iterable[Batch],
    device: torch.device | str,
    group: str = "global",
    *,
    autocast: torch.dtype | None = None,
    classes: Names | None = None,
    contents: Callable[[Batch], Tensor] | None = None,
    progress: Callable[[int], None] = lambda samples: None,
) -> dict[str, Features]:
    """Encode the first view of `group` of every valid sample by each encoder, in one pass.

    The encoders are moved to `device`. `autocast` (e.g. torch.bfloat16) is the precision of their
    forward passes; None: float32. `classes` names the labels, `contents` gives those of a batch;
    None: as the packed set behind the batches does, if they are those of a pipeline. `progress` is
    told of every batch how many samples it has.

    Raises:
        ContractError: the batches hold no such group.
        SslpipeError: there are no batches, an encoder takes no views of their size, or a feature
            is not finite.
    """
    device = find_device(device)
    look = contents_of(batches) if contents is None else contents
    shown: list[dict[str, Shown]] = []
    columns: list[tuple[Tensor, ...]] = []
    with ExitStack() as stack:
        for encoder in encoders.values():
            stack.enter_context(evaluating(encoder.to(device)))
        stack.enter_context(torch.autocast(device.type, autocast, enabled=bool(autocast)))
        for batch in batches:
            images_BCHW = first_view(batch.in_float32(), group).to(device, non_blocking=True)
            made = {name: encoded(e, images_BCHW, batch.valid) for name, e in encoders.items()}
            # one batch late: copying this one would wait for it, with nothing more to do queued
            shown[-1:] = [on_host(each) for each in shown[-1:]]
            shown.append(made)
            columns.append(known_of(batch, look(batch)))
            progress(int(batch.valid.sum()))
    if not shown:
        raise SslpipeError("evaluation: there are no batches; check the shards and the batch size")
    shown[-1] = on_host(shown[-1])
    labels, uids, known = (concatenated(column) for column in zip(*columns, strict=True))
    names = class_names(batches) if classes is None else classes
    return {
        name: features_of([each[name] for each in shown], labels, uids, names, known)
        for name in encoders
    }


def known_of(batch: Batch, contents_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Take labels, uids and contents of the valid samples of a batch."""
    kept = contents_B[batch.valid] if len(contents_B) else contents_B
    return batch.labels.cpu()[batch.valid], batch.uids[batch.valid], kept


def features_of(
    shown: Sequence[Shown], labels: Tensor, uids: Tensor, classes: Names, contents: Tensor
) -> Features:
    """Put the batches of one encoder together."""
    features, blocks, patches = (concatenated(column) for column in zip(*shown, strict=True))
    return Features(features, labels, uids, classes, contents, blocks, patches)


def concatenated(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate what batches gave; empty if it is not known of them."""
    return torch.cat([*parts]) if any(len(part) for part in parts) else parts[0]


def contents_of(batches: Iterable[Batch]) -> Callable[[Batch], Tensor]:
    """Find what says of a batch which samples have equal bytes: the indexes of packed shards.

    The CRC-32 and the size of a payload, mixed to an int64. Of a million different payloads, whose
    sizes vary by some 10 kB, a pair is taken for equal by chance in one of a hundred such sets.
    """
    if not isinstance(batches, Pipeline) or not isinstance(batches.source, Packed):
        return lambda batch: NONE.long()
    source = batches.source

    def contents(batch: Batch) -> Tensor:
        picks = source.picks(batch.step)
        samples, payloads = source.records(
            source.located(picks.corpora, picks.positions, picks.valid)
        )
        crc, size = (payloads[column].astype(np.uint64) for column in ("crc", "size"))
        found = torch.from_numpy(splitmix64(crc | size << np.uint64(32)).view(np.int64))
        uids = torch.from_numpy(samples["uid"].astype(np.int64))
        return torch.where(uids == batch.uids, found, batch.uids)  # a substitute: equal to none

    return contents


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
            "views": modality_of(recipe).evaluation_views(recipe),
            "masks": {},
            "targets": {},
        }
    )


def central_batches(
    recipe: Recipe,
    *,
    shards: str | Path | Manifest,
    device: torch.device | str,
    batch_size: int = 256,
) -> Pipeline:
    """Iterate once for every sample of `shards`; the last batch may be smaller.

    Every process reads the whole set: ranks that share it take whole batches (feature_cache.py).
    """
    chosen = central(recipe, batch_size=batch_size)
    return load(chosen, shards=shards, device=device, rank=0, world_size=1, epochs=1)
