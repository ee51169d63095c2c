"""Pretext tasks: what the method must guess, and what it does to the views. Keyed per sample.

Decided on the host as a table, made on the views' device from that table, without a wait.
Letters: V views, B samples.

A task of your own: save this as `mine.py` and write `task: "mine:Standing"` in a recipe.

```python
from dataclasses import dataclass

import numpy as np
import torch

from sslpipe.batch import TargetSpec


@dataclass(frozen=True, kw_only=True)
class Standing:  # guess whether a view stands on its head
    p: float = 0.5

    def specs(self, view, spec):  # the group as `apply` leaves it; 2 classes for every view
        return spec, TargetSpec(view, spec.count, 2)

    def draw(self, keys, stream):  # (V, B), decided before there are any pixels
        return (keys.uniforms(stream, 1)[..., 0] < self.p).astype(np.int64)

    def apply(self, views_VBCHW, table, there):  # `there` is the table on the views' device
        turned = views_VBCHW.flip(-2)
        return torch.where(there[:, :, None, None, None] == 1, turned, views_VBCHW), there
```
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ....batch import TargetSpec, ViewSpec
from ....errors import RecipeError
from ....recipe.names import Entry, call, choose
from ....rng import Keys
from ...returned import check_kind, check_shape
from ..tried import try_task
from .colorization import ColorizationTask
from .jigsaw import JigsawTask
from .relative_patch import RelativePatchTask
from .rotation import RotationOneTask, RotationTask

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


TASKS: Mapping[str, type[TargetTask]] = MappingProxyType(
    {
        "colorization": ColorizationTask,
        "jigsaw": JigsawTask,
        "relative_patch": RelativePatchTask,
        "rotation": RotationTask,
        "rotation_one": RotationOneTask,
    }
)


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


def pretext(
    name: str, entry: Entry, *, view: str, spec: ViewSpec, ops: Collection[str] = ()
) -> Pretext:
    """Build the task called `name` on view group `view`, whose ops have the names `ops`.

    Raises:
        RecipeError: unknown task or setting, or a view group that does not suit it.
    """
    task = call(choose(entry, TASKS, "task"), entry)
    if not isinstance(task, TargetTask):
        raise RecipeError(
            f"{entry.where}: {entry.name} is no task: it needs specs(view, spec), draw(keys, "
            "stream) and apply(views, table, there); add what it lacks"
        )
    try:
        if isinstance(task, ParticularTask):
            task.check_ops(view, ops)
        specs = task.specs(view, spec)
    except ValueError as error:
        raise RecipeError(f"{entry.where}: {entry.name}: {error}") from error
    if not isinstance(specs, tuple) or [*map(type, specs)] != [ViewSpec, TargetSpec]:
        raise RecipeError(
            f"{entry.where}: {entry.name}: specs() returned {specs!r}; return two, the ViewSpec of "
            "the group as apply() leaves it and a TargetSpec"
        )
    made = Pretext(name, task, *specs)
    if ":" in entry.name:
        try_task(made, spec)
    return made
