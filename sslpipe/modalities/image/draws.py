"""The policy of a view group, and its parameter table: pure functions of (seed, epoch, uid, view).

A table is known before anything is decoded, and every executor consumes the same one.
Letters: V views, B samples, P columns.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch

from ...batch import ViewSpec
from ...errors import RecipeError
from ...recipe.names import Entry, call, choose
from ...rng import Keys, stream_id
from ..returned import check_shape
from . import ops
from .ops import Draw, Op
from .ops.foreign import foreign
from .tried import try_op

OPS: Mapping[str, type[Op]] = MappingProxyType({
    name: getattr(ops, name)
    for name in (
        "CenterCrop", "ColorJitter", "MultiScaleCrop", "Normalize", "RandomAutoContrast",
        "RandomCrop", "RandomEqualize", "RandomErasing", "RandomGaussianBlur", "RandomGrayscale",
        "RandomHorizontalFlip", "RandomInvert", "RandomPosterize", "RandomResizedCrop",
        "RandomRotation", "RandomRotation90", "RandomSharpness", "RandomSolarize",
        "RandomVerticalFlip", "Resize",
    )
})  # fmt: skip
Crop = ops.RandomResizedCrop | ops.MultiScaleCrop | ops.RandomCrop | ops.CenterCrop | ops.Resize


@dataclass(frozen=True, slots=True)
class Step:
    """One op of a policy: its random stream, and where its columns start in the table."""

    op: Op
    stream: str
    start: int
    name: str  # with #2, #3 where an op stands again
    blocks: Sequence[int] = ()  # of four uniforms of the stream, drawn for all with other ops'

    @property
    def columns(self) -> slice:
        """Which of the P columns of the table are this op's."""
        return slice(self.start, self.start + len(self.op.columns))

    @property
    def reference_only(self) -> bool:
        """Only the kornia executor has its pixels: so of all that bring their own."""
        return isinstance(self.op, ops.OwnPixels) or self.op.reference_only


@dataclass(frozen=True, slots=True)
class Policy:
    """The ops of one view group in execution order; the first one is a crop."""

    group: str
    count: int
    shared: bool  # all views draw as view 0 does
    steps: tuple[Step, ...]
    columns: tuple[str, ...]
    dtype: torch.dtype = torch.float32  # of the finished views

    @property
    def crop(self) -> Crop:
        """The first op, which gives all samples one size."""
        crop = self.steps[0].op
        assert isinstance(crop, Crop)
        return crop

    @property
    def spec(self) -> ViewSpec:
        """What the group looks like in a batch."""
        height, width = self.crop.size
        shape = (3, height, width)
        return ViewSpec(self.group, self.count, "CHW", shape, self.dtype, columns=self.columns)

    @property
    def summary(self) -> str:
        """One line: how many views of which size, the ops, and what only the reference can do."""
        height, width = self.crop.size
        names = (
            f"{step.name} (kornia executor only)" if step.reference_only else step.name
            for step in self.steps
        )
        return f"{self.count} x {height} x {width}: {', '.join(names)}"


def policy(
    group: str,
    entries: Sequence[Entry],
    *,
    count: int,
    shared: bool,
    dtype: torch.dtype = torch.float32,
) -> Policy:
    """Build and check the ops of a view group.

    Raises:
        RecipeError: unknown op or setting, no crop first, a list that has not one entry per view,
            an op that does not suit the view, or two ops whose random streams collide.
    """
    seen: Counter[str] = Counter()
    steps: list[Step] = []
    columns: list[str] = []
    for entry in entries:
        op = build_op(entry)
        seen[entry.name] += 1
        name = entry.name if seen[entry.name] == 1 else f"{entry.name}#{seen[entry.name]}"
        stream = f"views/{group}/{name}"
        steps.append(Step(op, stream, len(columns), name, ops.uniform_blocks(op)))
        columns += [f"{name}.{column}" for column in op.columns]
        check_op(entry, op, count, first=len(steps) == 1)
    if not steps:
        raise RecipeError(f"views.{group}.ops is empty; begin it with a crop, e.g. CenterCrop")
    check_streams(steps, entries)
    made = Policy(group, count, shared, tuple(steps), tuple(columns), dtype)
    check_view(made, entries)
    return made


def build_op(entry: Entry) -> Op:
    """One of our ops, a user's `package.module:Class`, or any other class of Kornia.

    Raises:
        RecipeError: there is no such class, it is no op, or its settings do not fit.
    """
    if entry.name in OPS or ":" in entry.name:
        op: Op = call(choose(entry, OPS, "op"), entry)
        if entry.name not in OPS and not isinstance(op, ops.OwnPixels):
            raise RecipeError(
                f"{entry.where}: {entry.name} is no op: it needs columns, draw(source) and "
                "apply(images, rows); add what it lacks"
            )
        return op
    return foreign(entry, OPS)


def check_op(entry: Entry, op: Op, count: int, *, first: bool) -> None:
    """Check that the first op, and no other, is a crop, and that a list has one entry per view.

    Raises:
        RecipeError: an op stands in the wrong place, or a list is too short or too long.
    """
    if first != isinstance(op, Crop):
        crops = "CenterCrop, MultiScaleCrop, RandomCrop, RandomResizedCrop or Resize"
        raise RecipeError(
            f"{entry.where}: {entry.name} stands {'first' if first else 'later'}; the first op, "
            f"and only it, must be {crops}: it gives all samples one size"
        )
    for setting, given in ops.per_view(op):
        if given != count:
            raise RecipeError(
                f"{entry.where}: {entry.name}.{setting} has {given} values but the group makes "
                f"{count} views; give one value, or one per view"
            )


def check_view(policy: Policy, entries: Sequence[Entry]) -> None:
    """Every op suits the size of the views; those of users' own are tried.

    Raises:
        RecipeError: one does not suit.
        ContractError: what a user's own returns is not what it said.
    """
    for step, entry in zip(policy.steps, entries, strict=True):
        if isinstance(step.op, ops.Particular):
            try:
                step.op.check_view(*policy.crop.size)
            except ValueError as error:
                raise RecipeError(f"{entry.where}: {entry.name}: {error}") from error
        if ":" in entry.name:
            try_op(step.op, views=policy.count, size=policy.crop.size)


def check_streams(steps: Sequence[Step], entries: Sequence[Entry]) -> None:
    """Streams are 16-bit hashes: a collision would make two ops draw alike.

    Raises:
        RecipeError: the streams of two ops collide.
    """
    taken: dict[int, str] = {}
    for step, entry in zip(steps, entries, strict=True):
        other = taken.setdefault(stream_id(step.stream), step.stream)
        if other != step.stream:
            raise RecipeError(
                f"{entry.where}: the random streams of {step.stream!r} and {other!r} collide; "
                "rename the view group"
            )


def group_keys(
    policy: Policy, *, seed: int, epochs: npt.NDArray[np.int64], uids: npt.NDArray[np.int64]
) -> Keys:
    """The drawing identity of a batch for one group."""
    views = np.arange(policy.count, dtype=np.int64)
    return Keys(seed, epochs, uids, views * 0 if policy.shared else views)


def draw(policy: Policy, keys: Keys, sizes_B2: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """The (V, B, P) parameter table; sizes_B2 = height, width of each canvas in pixels.

    Whole numbers (boxes, gates, orders) are exact in float32; factors are rounded once, here.
    """
    blocks = {step.stream: step.blocks for step in policy.steps}
    drawn, size = keys.blocks(blocks), policy.crop.size
    table = np.empty((len(keys.views), len(keys.uids), len(policy.columns)), dtype=np.float32)
    for step in policy.steps:
        source = Draw(keys, step.stream, sizes_B2, size, drawn.get(step.stream))
        made = np.asarray(step.op.draw(source))
        check_shape(step.op, "draw() returned a table", made.shape, table[..., step.columns].shape)
        table[..., step.columns] = made
    return table
