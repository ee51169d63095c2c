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

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ....batch import TargetSpec, ViewSpec
from ....errors import RecipeError
from ....recipe.names import Entry, call, choose
from ....rng import Keys
from .colorization import Colorization
from .jigsaw import Jigsaw
from .relative_patch import RelativePatch
from .rotation import Rotation, RotationOne

I64 = npt.NDArray[np.int64]
Table = npt.NDArray[Any]


class Task(Protocol):
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


TASKS: Mapping[str, type[Task]] = MappingProxyType(
    {
        "colorization": Colorization,
        "jigsaw": Jigsaw,
        "relative_patch": RelativePatch,
        "rotation": Rotation,
        "rotation_one": RotationOne,
    }
)


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


def pretext(
    name: str, entry: Entry, *, view: str, spec: ViewSpec, normalised: bool = False
) -> Pretext:
    """Build the task called `name` on view group `view`; `normalised`: its pixels leave [0, 1].

    Raises:
        RecipeError: unknown task or setting, or a view group that does not suit it.
    """
    task: Task = call(choose(entry, TASKS, "task"), entry)
    if normalised and isinstance(task, Colorization):
        raise RecipeError(
            f"{entry.where}: {entry.name} needs pixels in [0, 1], but views.{view}.ops has "
            "Normalize; take it out"
        )
    try:
        return Pretext(name, task, *task.specs(view, spec))
    except ValueError as error:
        raise RecipeError(f"{entry.where}: {entry.name}: {error}") from error
