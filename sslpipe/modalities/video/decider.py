"""DECIDE for videos: which frames each view shows, then the tables of views and masks.

The table of a group holds the numbers of a clip's frames, then what the ops of images drew, once
for all frames of a clip; then, of ops that are drawn for each frame, what the later frames drew.
Letters: V views, B samples, T frames of a clip, U frames that any view of a sample shows, P columns
of a group's table, Q of its image ops.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

import numpy as np
import numpy.typing as npt

from ...batch import MaskSpec, TargetSpec, ViewSpec, whole_group
from ...errors import RecipeError
from ...masks import MaskSettings, maskers
from ...recipe import Entry, Recipe
from ...recipe.names import call, choose
from ...recipe.schema import ViewSection
from ...rng import Keys, Place
from ...stream.source import Drawn
from .. import Tables
from ..image import decider
from ..image.decider import DTYPES, ViewSettings
from ..image.draws import Policy, Step, draw, group_keys, policy
from ..image.ops import Draw
from .clips import CLIPS, CentralClip, ClipSampling, ShuffledClip
from .decode import ALL, shrunk_sides

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
NONE: Mapping[str, TargetSpec] = MappingProxyType({})  # tasks of images are not for clips


@dataclass(frozen=True, slots=True)
class ClipPolicy:
    """How the views of one group are made: a clip's frames, then ops on each of them."""

    sampling: ClipSampling
    stream: str  # of the sampling's draws
    images: Policy  # of one frame
    each: tuple[Step, ...]  # the ops that are drawn for each frame

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the P columns: numbers of frames, draws of the clip, draws of later frames."""
        name, later = type(self.sampling).__name__, range(1, self.sampling.frames)
        frames = [f"{name}.{t}" for t in range(self.sampling.frames)]
        drawn = [
            f"{step.name}.{c}@{t}" for t in later for step in self.each for c in step.op.columns
        ]
        return (*frames, *self.images.columns, *drawn)

    @property
    def spec(self) -> ViewSpec:
        """What the group looks like in a batch."""
        shape = (3, self.sampling.frames, *self.images.crop.size)
        return ViewSpec(
            self.images.group, self.images.count, "CTHW", shape, self.images.dtype,
            columns=self.columns,
        )  # fmt: skip

    @property
    def summary(self) -> str:
        """One line: how many clips of which size, the sampling and the ops."""
        frames, name = self.sampling.frames, type(self.sampling).__name__
        count, _, rest = self.images.summary.partition(" x ")
        each = f"; for each frame: {', '.join(s.name for s in self.each)}" if self.each else ""
        return f"{count} x {frames} frames x {rest}; {name}{each}"

    def numbers(self, keys: Keys, extents: I64) -> I64:
        """(V, B, T): the frames of each clip. extents: (B, 4) of videos; none may be unknown."""
        return self.sampling.draw(keys, self.stream, extents[:, 0], extents[:, 3] / 1000)

    def table(self, keys: Keys, extents: I64) -> F32:
        """The parameter table of the views, (V, B, P) float32."""
        numbers_VBT = self.numbers(keys, extents)
        drawn_VBQ = draw(self.images, keys, extents[:, 1:3])
        later = [
            frame_draw(self.images, step, keys, t, extents[:, 1:3])
            for t in range(1, self.sampling.frames)
            for step in self.each
        ]
        return np.concatenate([numbers_VBT.astype(np.float32), drawn_VBQ, *later], axis=-1)

    def frames_of(self, table_VBP: F32) -> I64:
        """The frames in a table, (V, B, T)."""
        return table_VBP[..., : self.sampling.frames].astype(np.int64)

    def rows_of(self, table_VBP: F32) -> F32:
        """The rows of each frame, for the executors of images: (V, B, T, Q)."""
        frames, columns = self.sampling.frames, len(self.images.columns)
        rows_VBTQ = np.repeat(table_VBP[..., None, frames : frames + columns], frames, axis=-2)
        at = frames + columns
        for t in range(1, frames if self.each else 1):
            for step in self.each:
                width = len(step.op.columns)
                rows_VBTQ[..., t, step.columns] = table_VBP[..., at : at + width]
                at += width
        return rows_VBTQ


def frame_draw(images: Policy, step: Step, keys: Keys, frame: int, sizes_B2: I64) -> F32:
    """What an op draws for a later frame of each clip, (V, B, columns); its stream is its own."""
    source = Draw(keys, f"{step.stream}/frame {frame}", sizes_B2, images.crop.size)
    return step.op.draw(source).astype(np.float32)


def clip_policy(group: str, view: ViewSettings) -> ClipPolicy:
    """Build and check the ops of a group: a sampling, then those of an image group.

    Raises:
        RecipeError: no sampling first, one that does not suit, or what image groups refuse.
    """
    if not view.ops or (view.ops[0].name not in CLIPS and ":" not in view.ops[0].name):
        first = f"{view.ops[0].where}: {view.ops[0].name} stands first" if view.ops else "is empty"
        raise RecipeError(
            f"{first}; views.{group}.ops of video begin with what frames a clip has: "
            f"{', '.join(CLIPS)}"
        )
    entry, *others = view.ops
    sampling: ClipSampling = call(choose(entry, CLIPS, "clip sampling"), entry)
    images = policy(
        group, others, count=view.count, shared=view.draws == "shared", dtype=DTYPES[view.dtype]
    )
    try:
        sampling.check_count(view.count)
    except ValueError as error:
        raise RecipeError(entry.told(str(error))) from error
    known = {step.name: step for step in images.steps}
    unknown = [name for name in sampling.per_frame if name not in known]
    if unknown:
        raise RecipeError(
            f"{entry.where}: {entry.name}.per_frame names {unknown[0]!r}, which is no op of "
            f"views.{group}; its ops are {', '.join(known)}"
        )
    each = tuple(step for step in images.steps if step.name in sampling.per_frame)
    return ClipPolicy(sampling, f"views/{group}/{entry.name}", images, each)


class VideoDecider:
    """All that a recipe decides of its video groups, checked and ready.

    size: `decode.size`, above which shorter sides of frames are shrunk to it; None: never.

    Raises:
        RecipeError: a sampling, op or mask that does not exist or does not suit; says file:line.
    """

    def __init__(
        self,
        views: Mapping[str, ViewSettings],
        masks: Mapping[str, MaskSettings],
        *,
        seed: int,
        size: int | None = None,
    ) -> None:
        self.seed, self.size = seed, size
        self.policies = {name: clip_policy(name, view) for name, view in views.items()}
        self.views = {name: group.spec for name, group in self.policies.items()}
        self.maskers = maskers(masks, self.views)
        self.targets = NONE

    @classmethod
    def of_recipe(cls, recipe: Recipe, groups: Sequence[str]) -> Self:
        """For some view groups of a recipe, with the masks on them.

        Raises:
            RecipeError: a task is asked of clips.
        """
        for name, target in recipe.targets.items():
            if target.view in groups:
                raise RecipeError(
                    f"{target.task.where}: targets.{name}: {target.task.name} is a task for "
                    f"images, and views.{target.view} are clips; leave it out"
                )
        return cls(
            {name: recipe.views[name] for name in groups},
            recipe.masks,
            seed=recipe.stream.seed,
            size=recipe.decode.size,
        )

    @property
    def masks(self) -> dict[str, MaskSpec]:
        """The grid that each mask covers, and what it hides of it."""
        return {name: masker.spec for name, masker in self.maskers.items()}

    @property
    def summaries(self) -> dict[str, str]:
        """How many clips of which size each group has, and its ops."""
        return {name: group.summary for name, group in self.policies.items()}

    def keys(self, group: ClipPolicy, epochs: I64, uids: I64) -> Keys:
        """The drawing identity of a batch for one group."""
        return group_keys(group.images, seed=self.seed, epochs=epochs, uids=uids)

    def instructions(self, *, epochs: I64, uids: I64, extents: I64) -> I64:
        """(B, U): the frames that any view shows, rising, then -1; no frames: all are needed.

        extents: (B, 4) of the index; zeros where it does not know them, so that all are decoded.
        """
        known_B = extents[:, 0] > 0
        lengths = np.where(known_B[:, None], extents, 1)
        groups = self.policies.values()
        drawn = [group.numbers(self.keys(group, epochs, uids), lengths) for group in groups]
        return np.where(known_B[:, None], union(drawn), ALL)

    def decide(self, *, epochs: I64, uids: I64, place: Place, extents: I64) -> Tables:
        """The tables of a batch; extents: (B, 4) of its videos, sides as they were decoded."""
        params = self._params(epochs, uids, extents)
        return self._tables(params, epochs=epochs, uids=uids, place=place, extents=extents)

    def draw_ahead(self, *, epochs: I64, uids: I64, extents: I64) -> Drawn | None:
        """The parameters of views; None where the index does not know all of these videos."""
        if not extents[:, :3].all():
            return None
        decoded = extents.copy()
        decoded[:, 1:3] = shrunk_sides(extents[:, 1:3], self.size)
        return Drawn(epochs, uids, decoded, self._params(epochs, uids, decoded))

    def decide_drawn(
        self, drawn: Drawn, *, epochs: I64, uids: I64, place: Place, extents: I64
    ) -> Tables:
        """The tables that `decide` would give, with the parameters that are drawn already."""
        params = {**drawn.params}
        return self._tables(params, epochs=epochs, uids=uids, place=place, extents=extents)

    def _params(self, epochs: I64, uids: I64, extents: I64) -> dict[str, F32]:
        """What is drawn for the views of each group."""
        return {
            name: group.table(self.keys(group, epochs, uids), extents)
            for name, group in self.policies.items()
        }

    def _tables(
        self, params: dict[str, F32], *, epochs: I64, uids: I64, place: Place, extents: I64
    ) -> Tables:
        """Those of a batch, given the parameters of its views."""
        return Tables(
            params=params,
            masks={
                name: masker.draw(seed=self.seed, epochs=epochs, uids=uids, place=place)
                for name, masker in self.maskers.items()
            },
            targets={},
            extents=extents,
        )


def union(numbers: Sequence[I64]) -> I64:
    """The frames of all views of each sample, rising, each once, then -1: (B, U) of (V, B, T)."""
    all_BU = np.concatenate([np.moveaxis(n, 1, 0).reshape(n.shape[1], -1) for n in numbers], axis=1)
    all_BU.sort(axis=1)
    beyond = np.iinfo(np.int64).max
    all_BU[:, 1:][all_BU[:, 1:] == all_BU[:, :-1]] = beyond
    all_BU.sort(axis=1)
    return np.where(all_BU == beyond, ALL, all_BU)


def evaluation_views(recipe: Recipe) -> dict[str, ViewSection]:
    """One central crop of the frames about the middle, as long and as wide apart as in training.

    A sampling that is meant for evaluation is kept as it is.
    """
    group = recipe.views[whole_group(recipe.views)]
    first = group.ops[0]
    taken = {k: first.settings[k] for k in ("frames", "stride") if k in first.settings}
    rest = group.model_copy(update={"ops": group.ops[1:]})
    (view,) = decider.evaluation_views(
        recipe.model_copy(update={"views": {"global": rest}})
    ).values()
    kept = first.name in (CentralClip.__name__, ShuffledClip.__name__)
    clip = first if kept else Entry(CentralClip.__name__, taken)
    return {"global": view.model_copy(update={"ops": (clip, *view.ops)})}
