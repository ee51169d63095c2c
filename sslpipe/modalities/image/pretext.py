"""A pretext task on one view group: what decides its targets, and what applies them to the views.

The tasks themselves, and an example of one's own, stand in `targets`.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ...batch import TargetSpec, ViewSpec
from ...rng import Keys
from ..returned import check_kind, check_shape

I64 = npt.NDArray[np.int64]
Table = npt.NDArray[Any]


@runtime_checkable
class TargetTask(Protocol):
    """A pretext task: decide the targets, then apply them to the views."""

    def specs(self, view: str, spec: ViewSpec) -> tuple[ViewSpec, TargetSpec]:
        """The group as `apply` leaves it, and the targets; ValueError says why it does not suit."""
        ...

    def draw(self, keys: Keys, stream: str) -> Table:
        """What is random, (V, B, ...), V = targets per sample."""
        ...

    def apply(self, views_VBCHW: Tensor, table: Table, there: Tensor) -> tuple[Tensor, Tensor]:
        """The views as the task wants them, and their targets, on the views' device.

        `there` is the table on that device: it travelled with the pixels, without a wait.
        """
        ...


@runtime_checkable
class ParticularTask(Protocol):
    """A task that not every group of ops suits; most tasks have no such method."""

    def check_ops(self, view: str, ops: Collection[str]) -> None:
        """Raise a ValueError that says which op of group `view` is in the way."""
        ...


@dataclass(frozen=True, slots=True)
class Pretext:
    """A task on one view group."""

    name: str
    task: TargetTask
    view_spec: ViewSpec  # of the group, once the task is applied
    spec: TargetSpec

    def draw(self, *, seed: int, epochs: I64, uids: I64) -> Table:
        """What is random for the samples of a batch."""
        keys = Keys(seed, epochs, uids, np.arange(self.spec.count, dtype=np.int64))
        drawn = self.task.draw(keys, f"targets/{self.name}")
        check_kind(self.task, "draw() returned", drawn, np.ndarray)
        return drawn

    def apply(self, views_VBCHW: Tensor, table: Table, there: Tensor) -> tuple[Tensor, Tensor]:
        """The views as the task leaves them, as it said, and its targets.

        Raises:
            ContractError: it returns something else.
        """
        made = self.task.apply(views_VBCHW, table, there)
        check_kind(self.task, "apply() returned", made, tuple)
        views, targets = made
        spec, what = self.view_spec, f"apply() returned views {self.view_spec.group!r}"
        check_shape(self.task, what, views.shape, (spec.count, views_VBCHW.shape[1], *spec.shape))
        return views, targets
