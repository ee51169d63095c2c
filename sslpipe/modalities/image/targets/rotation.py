"""RotNet's quarter turns."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ....batch import TargetSpec, ViewSpec
from ....rng import Keys

Table = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class RotationTask:
    """All four quarter turns of every image: view v is turned v times, counter-clockwise.

    RotNet, arXiv:1803.07728; `dataloader.py` of FeatureLearningRotNet. Turned by moving pixels, not
    by interpolation, which would leave a shortcut. The paper turns one augmented image four times:
    set views.<group>.draws to shared.
    """

    def specs(self, view: str, spec: ViewSpec) -> tuple[ViewSpec, TargetSpec]:
        """Ask for four square views, one per turn; the target is the turn."""
        if spec.count != 4:
            raise ValueError(f"views.{view}.count is {spec.count}; set it to 4, one per turn")
        return spec, square_target(view, spec)

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


@dataclass(frozen=True, kw_only=True)
class RotationOneTask:
    """One quarter turn of each view, counter-clockwise, all four equally likely.

    A quarter of the work per image of `rotation`, and not the paper's: it reports that a batch with
    all four turns of an image does better.
    """

    def specs(self, view: str, spec: ViewSpec) -> tuple[ViewSpec, TargetSpec]:
        """Square views, as many as there are."""
        return spec, square_target(view, spec)

    def draw(self, keys: Keys, stream: str) -> Table:
        """Draw the quarter turns of each view, (V, B) int64 in [0, 4)."""
        return np.floor(keys.uniforms(stream, 1)[..., 0] * 4).astype(np.int64)

    def apply(self, views_VBCHW: Tensor, table: Table, there: Tensor) -> tuple[Tensor, Tensor]:
        """Turn each view by its target: made four times, so that the device decides alone."""
        turns_VB111 = there[:, :, None, None, None]
        made = views_VBCHW
        for turn in (1, 2, 3):
            made = torch.where(turns_VB111 == turn, views_VBCHW.rot90(turn, (-2, -1)), made)
        return made, there


def square_target(view: str, spec: ViewSpec) -> TargetSpec:
    """One of four turns per view.

    Raises:
        ValueError: the views are not square.
    """
    if spec.size("H") != spec.size("W"):
        raise ValueError(f"views.{view} is {spec.shown}; make it square")
    return TargetSpec(view, spec.count, 4)
