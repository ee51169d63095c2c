"""DO for images, on the device: canvases and tables to views and targets."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...device.ragged import Ragged
from .. import Made, Raw, Tables
from ..returned import check_targets
from . import executors
from .decider import ImageDecider
from .scale import fitted


class ImageMaker:
    """The views of a decider, by the executor of a name.

    threads: for executors that work on the CPU; None: the caller's alone. size: of the nominal
    canvas, see `decode`. where: the executor is named.

    Raises:
        RecipeError: the executor does not suit the device, or does not know an op.
    """

    def __init__(
        self,
        decider: ImageDecider,
        *,
        device: torch.device,
        executor: executors.Name = "auto",
        threads: ThreadPoolExecutor | None = None,
        size: int | None = None,
        where: str = "recipe",
    ) -> None:
        self.decider, self.device = decider, device
        self.executors = {
            name: executors.choose(executor, group, device, threads=threads, where=where)
            for name, group in decider.policies.items()
        }
        self._size = size
        self._tried: set[str] = set()  # tasks whose first targets were looked at

    @property
    def blank(self) -> Raw:
        """A black canvas, so large that no view of it needs padding."""
        sides = [max(view.shape[1:]) for view in self.decider.views.values()]
        side = max(self._size or 0, *sides)
        return Raw(np.zeros((side, side, 3), dtype=np.uint8), (side, side))

    def make(self, arrays: Sequence[Tensor], tables: Tables, targets: Mapping[str, Tensor]) -> Made:
        """Make the views, then let each task change its group.

        arrays: (H, W, 3) uint8 canvases, of at most their nominal sides.
        """
        actual_B2 = sides(arrays)
        asked = {made.spec.view for made in self.decider.pretexts.values()}
        views = {
            name: self.executors[name](
                group,
                arrays,
                fitted(group, tables.params[name], tables.extents, actual_B2),
                device=self.device,
                dtype=torch.float32 if name in asked else group.dtype,  # tasks compute
            )
            for name, group in self.decider.policies.items()
        }
        guessed = {}
        for name, made in self.decider.pretexts.items():
            there = targets[name]
            group = made.spec.view
            views[group], guessed[name] = made.apply(views[group], tables.targets[name], there)
            if name not in self._tried:  # it waits for the ids, so it is done once
                check_targets(made.task, guessed[name], made.spec, len(arrays))
                self._tried.add(name)
        for group in asked:
            views[group] = views[group].to(self.decider.policies[group].dtype)
        return Made(views, guessed, {}, {})


def sides(arrays: Sequence[Tensor]) -> npt.NDArray[np.int64]:
    """Height and width of canvases, (B, 2); those of a Ragged stand in its table."""
    if isinstance(arrays, Ragged):
        return arrays.shapes_BD[:, :2]
    return np.array([canvas.shape[:2] for canvas in arrays], dtype=np.int64)
