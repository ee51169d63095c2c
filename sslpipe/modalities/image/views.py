"""Canvases -> views, masks and targets, by tables that are decided first."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...batch import MaskSpec, TargetSpec, ViewSpec
from ...device.handoff import Send
from ...errors import RecipeError
from ...masks import MaskSettings, maskers
from ...recipe.names import Entry
from ...rng import Place
from . import executors
from .draws import draw, keys_of, policy
from .scale import Canvas, fitted
from .targets import Pretext, Table, pretext

I64 = npt.NDArray[np.int64]


class ViewSettings(Protocol):
    """A view group of a recipe."""

    @property
    def count(self) -> int: ...
    @property
    def draws(self) -> str: ...
    @property
    def ops(self) -> Sequence[Entry]: ...


class TargetSettings(Protocol):
    """A pretext task of a recipe."""

    @property
    def view(self) -> str: ...
    @property
    def task(self) -> Entry: ...


@dataclass(frozen=True, slots=True)
class Made:
    """The fields of `batch.Batch` that are made here."""

    views: dict[str, Tensor]
    masks: dict[str, Tensor]
    hidden: dict[str, I64]
    targets: dict[str, Tensor]
    params: dict[str, Tensor]
    labels: Tensor


class Views:
    """Everything that a recipe makes of a canvas, checked and ready.

    Raises:
        RecipeError: an op, mask or task that does not exist or does not suit; says file:line.
    """

    def __init__(
        self,
        views: Mapping[str, ViewSettings],
        masks: Mapping[str, MaskSettings],
        targets: Mapping[str, TargetSettings],
        *,
        seed: int,
        device: torch.device,
        executor: executors.Name = "auto",
        threads: ThreadPoolExecutor | None = None,
    ) -> None:
        self.seed, self.device = seed, device
        self.policies = {
            name: policy(name, group.ops, count=group.count, shared=group.draws == "shared")
            for name, group in views.items()
        }
        self.executors = {
            name: executors.choose(executor, group, device, threads=threads)
            for name, group in self.policies.items()
        }
        drawn = {name: group.spec for name, group in self.policies.items()}
        self.maskers = maskers(masks, drawn)
        self.view_specs, self.pretexts = asked(targets, views, drawn)  # as batches hold them
        for name, mask in masks.items():
            check_size(mask, name, drawn, self.view_specs)

    @property
    def mask_specs(self) -> dict[str, MaskSpec]:
        """Per mask."""
        return {name: m.spec for name, m in self.maskers.items()}

    @property
    def target_specs(self) -> dict[str, TargetSpec]:
        """Per pretext task."""
        return {name: t.spec for name, t in self.pretexts.items()}

    def decide(
        self, *, epochs: I64, uids: I64, sizes_B2: I64
    ) -> dict[str, npt.NDArray[np.float32]]:
        """The parameter tables: group -> (V, B, P)."""
        return {
            name: draw(p, keys_of(p, seed=self.seed, epochs=epochs, uids=uids), sizes_B2)
            for name, p in self.policies.items()
        }

    def make(
        self,
        canvases: Sequence[Canvas],
        labels: Tensor,
        *,
        epochs: I64,
        uids: I64,
        place: Place,
        send: Send,
    ) -> Made:
        """Make what a batch holds: all but parameters and counts lies on the device.

        All is decided first; then pixels, masks, tables of tasks and labels travel together.
        """
        nominal_B2 = np.array([canvas.nominal for canvas in canvases], dtype=np.int64)
        actual_B2 = np.array([canvas.pixels.shape[:2] for canvas in canvases], dtype=np.int64)
        tables = self.decide(epochs=epochs, uids=uids, sizes_B2=nominal_B2)
        masks = [
            masker.draw(seed=self.seed, epochs=epochs, uids=uids, place=place)
            for masker in self.maskers.values()
        ]
        tasks = [t.draw(seed=self.seed, epochs=epochs, uids=uids) for t in self.pretexts.values()]
        pixels, masks_there, tasks_there, (labels,) = send_groups(
            send,
            [canvas.pixels for canvas in canvases],
            [torch.from_numpy(mask) for mask in masks],
            [torch.from_numpy(table) for table in tasks],
            [labels],
        )
        views = {
            name: self.executors[name](
                p,
                pixels,
                fitted(p, tables[name], nominal_B2, actual_B2),
                device=self.device,
            )
            for name, p in self.policies.items()
        }
        targets = self._apply(views, tasks, tasks_there)
        return Made(
            views=views,
            masks=dict(zip(self.maskers, masks_there, strict=True)),
            hidden={name: mask.sum(-1) for name, mask in zip(self.maskers, masks, strict=True)},
            targets=targets,
            params={name: torch.from_numpy(table) for name, table in tables.items()},
            labels=labels,
        )

    def _apply(
        self, views: dict[str, Tensor], tables: Sequence[Table], there: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Let each task change its group in `views`; returns the targets."""
        targets = {}
        for (name, made), table, sent in zip(self.pretexts.items(), tables, there, strict=True):
            group = made.spec.view
            views[group], targets[name] = made.task.apply(views[group], table, sent)
        return targets


def asked(
    targets: Mapping[str, TargetSettings],
    views: Mapping[str, ViewSettings],
    drawn: Mapping[str, ViewSpec],
) -> tuple[dict[str, ViewSpec], dict[str, Pretext]]:
    """The tasks of a recipe, each on what those before it made of its group, and what they leave.

    Raises:
        RecipeError: unknown task or setting, or a view group that does not suit it.
    """
    specs, pretexts = dict(drawn), {}
    for name, target in targets.items():
        normalised = any(op.name == "Normalize" for op in views[target.view].ops)
        pretexts[name] = made = pretext(
            name, target.task, view=target.view, spec=specs[target.view], normalised=normalised
        )
        specs[target.view] = made.view_spec
    return specs, pretexts


def check_size(
    mask: MaskSettings, name: str, drawn: Mapping[str, ViewSpec], left: Mapping[str, ViewSpec]
) -> None:
    """Raise a RecipeError if a task cuts up the views that a mask covers."""
    before, after = (s.shape[1:] for s in (drawn[mask.view], left[mask.view]))
    if before != after:
        raise RecipeError(
            f"{mask.sampler.where}: masks.{name} covers views.{mask.view} of {before[0]} x "
            f"{before[1]} px, which a task makes {after[0]} x {after[1]}; mask another group"
        )


def send_groups(send: Send, *groups: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Send several lists of tensors together."""
    sent = iter(send([tensor for group in groups for tensor in group]))
    return (list(islice(sent, len(group))) for group in groups)
