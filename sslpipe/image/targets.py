"""Pretext tasks: what the method must guess, and what it does to the views. Keyed per sample.

Letters: V views, B samples.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .. import lookup
from ..batch import TargetSpec, ViewSpec
from ..errors import RecipeError
from ..lookup import Entry
from ..rng import Keys

I64 = npt.NDArray[np.int64]
Table = npt.NDArray[Any]


class Task(Protocol):
    """A pretext task: decide the targets, then apply them to the views."""

    def specs(self, view: str, spec: ViewSpec) -> tuple[ViewSpec, TargetSpec]:
        """The group as `apply` leaves it, and the targets; ValueError says why it does not suit."""
        ...

    def draw(self, keys: Keys, stream: str) -> Table:
        """What is random, (V, B, ...)."""
        ...

    def apply(self, views_VBCHW: Tensor, table: Table, there: Tensor) -> tuple[Tensor, Tensor]:
        """The views as the task wants them, and their targets, on the views' device.

        `there` is the table on that device: it travelled with the pixels, without a wait.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """All four quarter turns of every image: view v is turned v times, counter-clockwise.

    RotNet, arXiv:1803.07728; `dataloader.py` of FeatureLearningRotNet. Turned by moving pixels, not
    by interpolation, which would leave a shortcut. The paper turns one augmented image four times:
    set views.<group>.draws to shared.
    """

    def specs(self, view: str, spec: ViewSpec) -> tuple[ViewSpec, TargetSpec]:
        """Four square views."""
        if spec.count != 4:
            raise ValueError(f"views.{view}.count is {spec.count}; set it to 4, one per turn")
        if spec.height != spec.width:
            raise ValueError(f"views.{view} is {spec.height} x {spec.width} px; make it square")
        return spec, TargetSpec(view, spec.count, 4)

    def draw(self, keys: Keys, stream: str) -> Table:
        """Nothing is random: the view's index."""
        turns_V = np.arange(len(keys.views), dtype=np.int64)
        return np.repeat(turns_V[:, None], len(keys.uids), axis=1)

    def apply(self, views_VBCHW: Tensor, table: Table, there: Tensor) -> tuple[Tensor, Tensor]:
        """Turn each view by its target."""
        turned = [
            torch.rot90(view_BCHW, int(turns_B[0]), (-2, -1))
            for view_BCHW, turns_B in zip(views_VBCHW, table, strict=True)
        ]
        return torch.stack(turned), there


TASKS: Mapping[str, type[Task]] = MappingProxyType({"rotation": Rotation})


@dataclass(frozen=True, slots=True)
class Pretext:
    """A task on one view group."""

    name: str
    task: Task
    view_spec: ViewSpec  # of the group, once the task is applied
    spec: TargetSpec

    def draw(self, *, seed: int, epochs: I64, uids: I64) -> Table:
        """What is random for the samples of a batch."""
        keys = Keys(seed, epochs, uids, np.arange(self.spec.count, dtype=np.int64))
        return self.task.draw(keys, f"targets/{self.name}")


def pretext(name: str, entry: Entry, *, view: str, spec: ViewSpec) -> Pretext:
    """Build the task called `name` on view group `view`.

    Raises:
        RecipeError: unknown task or setting, or a view group that does not suit it.
    """
    task: Task = lookup.call(lookup.choose(entry, TASKS, "task"), entry)
    try:
        return Pretext(name, task, *task.specs(view, spec))
    except ValueError as error:
        raise RecipeError(f"{entry.where}: {entry.name}: {error}") from error
