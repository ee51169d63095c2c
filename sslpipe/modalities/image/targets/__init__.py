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
from types import MappingProxyType

from ....batch import TargetSpec, ViewSpec
from ....errors import RecipeError
from ....recipe.names import Entry, call, choose
from ..pretext import ParticularTask, Pretext, TargetTask
from ..tried import try_task
from .colorization import ColorizationTask
from .jigsaw import JigsawTask
from .relative_patch import RelativePatchTask
from .rotation import RotationOneTask, RotationTask

TASKS: Mapping[str, type[TargetTask]] = MappingProxyType(
    {
        "colorization": ColorizationTask,
        "jigsaw": JigsawTask,
        "relative_patch": RelativePatchTask,
        "rotation": RotationTask,
        "rotation_one": RotationOneTask,
    }
)


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
        raise RecipeError(entry.told(str(error))) from error
    if not isinstance(specs, tuple) or [*map(type, specs)] != [ViewSpec, TargetSpec]:
        raise RecipeError(
            f"{entry.where}: {entry.name}: specs() returned {specs!r}; return two, the ViewSpec of "
            "the group as apply() leaves it and a TargetSpec"
        )
    made = Pretext(name, task, *specs)
    if ":" in entry.name:
        try_task(made, spec)
    return made
