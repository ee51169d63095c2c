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

from .. import lookup
from ..batch import ViewSpec
from ..errors import RecipeError
from ..lookup import Entry
from ..rng import Keys, stream_id
from . import ops
from .ops import Draw, Op

OPS: Mapping[str, type[Op]] = MappingProxyType({
    name: getattr(ops, name)
    for name in (
        "CenterCrop", "ColorJitter", "Normalize", "RandomCrop", "RandomGaussianBlur",
        "RandomGrayscale", "RandomHorizontalFlip", "RandomResizedCrop", "RandomSolarize",
        "RandomVerticalFlip",
    )
})  # fmt: skip
Crop = ops.RandomResizedCrop | ops.RandomCrop | ops.CenterCrop


@dataclass(frozen=True, slots=True)
class Step:
    """One op of a policy: its random stream, and where its columns start in the table."""

    op: Op
    stream: str
    start: int

    @property
    def columns(self) -> slice:
        """Its slice of P."""
        return slice(self.start, self.start + len(self.op.columns))


@dataclass(frozen=True, slots=True)
class Policy:
    """The ops of one view group in execution order; the first one is a crop."""

    count: int
    shared: bool  # all views draw as view 0 does
    steps: tuple[Step, ...]
    columns: tuple[str, ...]

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
        return ViewSpec(self.count, 3, height, width, self.columns)


def policy(group: str, entries: Sequence[Entry], *, count: int, shared: bool) -> Policy:
    """Build and check the ops of a view group.

    Raises:
        RecipeError: unknown op or setting, no crop first, wrong number of `p`, or two ops whose
            random streams collide.
    """
    seen: Counter[str] = Counter()
    steps: list[Step] = []
    columns: list[str] = []
    for entry in entries:
        op = lookup.call(lookup.choose(entry, OPS, "op"), entry)
        seen[entry.name] += 1
        name = entry.name if seen[entry.name] == 1 else f"{entry.name}#{seen[entry.name]}"
        steps.append(Step(op, f"views/{group}/{name}", len(columns)))
        columns += [f"{name}.{column}" for column in op.columns]
        check_op(entry, op, count, first=len(steps) == 1)
    if not steps:
        raise RecipeError(f"views.{group}.ops is empty; begin it with a crop, e.g. CenterCrop")
    check_streams(steps, entries)
    return Policy(count, shared, tuple(steps), tuple(columns))


def check_op(entry: Entry, op: Op, count: int, *, first: bool) -> None:
    """The first op is a crop and no other is; a list of p has one value per view."""
    if first != isinstance(op, Crop):
        crops = "CenterCrop, RandomCrop or RandomResizedCrop"
        raise RecipeError(
            f"{entry.where}: {entry.name} stands {'first' if first else 'later'}; the first op, "
            f"and only it, must be {crops}: it gives all samples one size"
        )
    p = getattr(op, "p", None)
    if isinstance(p, tuple) and len(p) != count:
        raise RecipeError(
            f"{entry.where}: {entry.name}.p has {len(p)} values but the group makes {count} views; "
            "give one value, or one per view"
        )


def check_streams(steps: Sequence[Step], entries: Sequence[Entry]) -> None:
    """Streams are 16-bit hashes: a collision would make two ops draw alike."""
    taken: dict[int, str] = {}
    for step, entry in zip(steps, entries, strict=True):
        other = taken.setdefault(stream_id(step.stream), step.stream)
        if other != step.stream:
            raise RecipeError(
                f"{entry.where}: the random streams of {step.stream!r} and {other!r} collide; "
                "rename the view group"
            )


def keys_of(
    policy: Policy, *, seed: int, epochs: npt.NDArray[np.int64], uids: npt.NDArray[np.int64]
) -> Keys:
    """The drawing identity of a batch for one group."""
    views = np.arange(policy.count, dtype=np.int64)
    return Keys(seed, epochs, uids, views * 0 if policy.shared else views)


def draw(policy: Policy, keys: Keys, sizes_B2: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """The (V, B, P) parameter table; sizes_B2 = height, width of each canvas in pixels.

    Whole numbers (boxes, gates, orders) are exact in float32; factors are rounded once, here.
    """
    tables = [step.op.draw(Draw(keys, step.stream, sizes_B2)) for step in policy.steps]
    return np.concatenate(tables, axis=-1).astype(np.float32)
