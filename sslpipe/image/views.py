"""Canvases -> views, masks and targets, by tables that are decided first."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..batch import MaskSpec, TargetSpec, ViewSpec
from ..lookup import Entry
from ..rng import Place
from . import executors
from .draws import draw, keys_of, policy
from .masks import MaskSettings, maskers
from .targets import pretext

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
        specs = {name: group.spec for name, group in self.policies.items()}
        self.maskers = maskers(masks, specs)
        self.pretexts = {
            name: pretext(name, t.task, view=t.view, spec=specs[t.view])
            for name, t in targets.items()
        }

    @property
    def view_specs(self) -> dict[str, ViewSpec]:
        """Per view group, as batches hold it."""
        made = {name: group.spec for name, group in self.policies.items()}
        return made | {task.spec.view: task.view_spec for task in self.pretexts.values()}

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

    def make(self, canvases: Sequence[Tensor], *, epochs: I64, uids: I64, place: Place) -> Made:
        """Make what a batch holds of canvases (H, W, 3) uint8."""
        sizes_B2 = np.array([canvas.shape[:2] for canvas in canvases], dtype=np.int64)
        tables = self.decide(epochs=epochs, uids=uids, sizes_B2=sizes_B2)
        views = {
            name: self.executors[name](p, canvases, tables[name], device=self.device)
            for name, p in self.policies.items()
        }
        masks = {
            name: m.draw(seed=self.seed, epochs=epochs, uids=uids, place=place)
            for name, m in self.maskers.items()
        }
        targets = {}
        for name, task in self.pretexts.items():
            table = task.draw(seed=self.seed, epochs=epochs, uids=uids)
            group = task.spec.view
            views[group], targets[name] = task.task.apply(views[group], table)
        return Made(
            views=views,
            masks={name: torch.from_numpy(m).to(self.device) for name, m in masks.items()},
            hidden={name: m.sum(-1) for name, m in masks.items()},
            targets=targets,
            params={name: torch.from_numpy(table) for name, table in tables.items()},
        )
