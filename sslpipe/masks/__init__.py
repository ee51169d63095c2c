"""Masks over the patches of a view. True = hidden from the encoder.

Decided on the host, keyed per sample; where an official method couples the samples of a batch
(mode `reference`), keyed by the place in the global batch, which every rank can compute.

Letters: M masks per sample, B samples, N patches (row-major; of clips time comes first).

A sampler of your own: save this as `mine.py` and write `sampler: "mine:Checkers"` in a recipe.

```python
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Checkers:  # hides black fields of a chessboard, each sample others
    ratio: float = 0.5  # of the black fields

    def hidden(self, grid):
        return int(np.prod(grid) // 2 * self.ratio)  # the same number in every mask

    def draw(self, keys, place, stream, grid):
        words_MBN = keys.words(stream, np.prod(grid)).astype(np.int64)  # of this sample alone
        white_N = np.indices(grid).sum(0).ravel() % 2 == 0
        order_MBN = (words_MBN + (white_N.astype(np.int64) << 32)).argsort(-1).argsort(-1)
        return order_MBN < self.hidden(grid)  # (M, B, N) bool, True = hidden
```
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ..batch import MaskSpec, ViewSpec
from ..errors import ContractError, RecipeError
from ..recipe.names import Entry, call, choose
from ..rng import Keys, Place
from .blockwise import Blockwise, DINOv2Blocks, IBotBlocks
from .grids import Grid
from .inverse import InverseBlock
from .multiblock import Multiblock
from .regions import RandomRegion
from .spans import Bands, Spans, WithinReal
from .subsets import Centre, RandomPatches, SimMIMUnits
from .tried import try_masks
from .tube_blocks import TubeBlocks
from .tubes import RunningCell, Tube


@runtime_checkable
class Sampler(Protocol):
    """Draws masks, from the keys of the samples or, where it couples them, from their place.

    Both raise a ValueError where the grid does not suit; they are tried before any data is read.
    """

    def hidden(self, grid: Grid) -> int | None:
        """Return how many patches every mask hides; None: they differ."""
        ...

    def draw(self, keys: Keys, place: Place, stream: str, grid: Grid) -> npt.NDArray[np.bool_]:
        """Draw (M, B, N) bool; M = len(keys.views) unless the sampler makes its own number."""
        ...


@runtime_checkable
class PartOfOneDraw(Protocol):
    """A sampler of which several masks of a view group are parts: I-JEPA's context and targets."""

    @property
    def whole(self) -> object:
        """The settings that all parts must have in common."""
        ...


SAMPLERS: Mapping[str, type[Sampler]] = MappingProxyType(
    {
        "bands": Bands,
        "blockwise": Blockwise,
        "centre": Centre,
        "dinov2": DINOv2Blocks,
        "ibot": IBotBlocks,
        "inverse_block": InverseBlock,
        "multiblock": Multiblock,
        "random": RandomPatches,
        "random_region": RandomRegion,
        "running_cell": RunningCell,
        "simmim": SimMIMUnits,
        "spans": Spans,
        "tube": Tube,
        "tube_blocks": TubeBlocks,
    }
)


class MaskSettings(Protocol):
    """What a recipe says of one mask: fields of `schema.MaskSection`."""

    @property
    def view(self) -> str: ...
    @property
    def count(self) -> int: ...
    @property
    def patch_size(self) -> int | tuple[int, ...]: ...
    @property
    def receptive_field(self) -> int | None: ...
    @property
    def sampler(self) -> Entry: ...
    def where(self, key: str) -> str: ...


@dataclass(frozen=True, slots=True)
class Masker:
    """A sampler that is bound to the grid of one view group."""

    name: str
    sampler: Sampler
    spec: MaskSpec

    def draw(
        self,
        *,
        seed: int,
        epochs: npt.NDArray[np.int64],
        uids: npt.NDArray[np.int64],
        place: Place,
        real_B: npt.NDArray[np.int64] | None = None,
    ) -> npt.NDArray[np.bool_]:
        """Draw (M, B, N) bool for the samples of a batch.

        real_B: how many patches of each are no padding, for samplers that look at it; None: all.

        Raises:
            ContractError: they hide another number of patches than the sampler said.
        """
        keys = Keys(seed, epochs, uids, np.arange(self.spec.count, dtype=np.int64))
        stream, grid = f"masks/{self.name}", self.spec.grid
        if real_B is not None and isinstance(self.sampler, WithinReal) and self.spec.most:
            return self.sampler.draw_within(keys, stream, grid, real_B)
        drawn = self.sampler.draw(keys, place, stream, grid)
        if self.spec.hidden is not None and (drawn.sum(-1) != self.spec.hidden).any():
            kind = type(self.sampler)
            raise ContractError(
                f"{kind.__module__}:{kind.__qualname__}: masks.{self.name} hides "
                f"{drawn.sum(-1).min()} to {drawn.sum(-1).max()} patches, where hidden() says "
                f"{self.spec.hidden}; hide as many, or return None from hidden()"
            )
        return drawn


def draw_masks(
    sampler: Sampler,
    *,
    grid: Grid,
    ids: npt.ArrayLike,
    seed: int = 0,
    epoch: int = 0,
    count: int = 1,
    name: str = "random",
) -> npt.NDArray[np.bool_]:
    """Draw masks alone, for batches of anybody's: (count, B, N) bool, True = hidden.

    `draw_masks(RandomPatches(ratio=0.75), grid=(14, 14), ids=range(8))`. ids: B whole numbers that
    say which samples they are in every epoch. name: of the mask in a recipe, whose pipeline draws
    the same for these ids. Samplers that couple a batch take it for the first one of the run.

    Raises:
        ValueError: the grid does not suit the sampler.
    """
    sampler.hidden(grid)
    uids = np.asarray(list(ids) if isinstance(ids, range) else ids, dtype=np.int64)
    keys = Keys(seed, np.full_like(uids, epoch), uids, np.arange(count, dtype=np.int64))
    place = Place(0, np.arange(len(uids)), len(uids))
    return sampler.draw(keys, place, f"masks/{name}", grid)


def maskers(masks: Mapping[str, MaskSettings], views: Mapping[str, ViewSpec]) -> dict[str, Masker]:
    """Build the masks of a recipe that cover these views, and try each on some samples.

    Raises:
        RecipeError: unknown sampler or setting, patches that do not fit the view, a count that
            the sampler does not make, or a mask that hides nothing or everything.
    """
    mine = {name: mask for name, mask in masks.items() if mask.view in views}
    built = {name: masker(name, mask, views[mask.view]) for name, mask in mine.items()}
    check_agreement(masks, built)
    return built


def masker(name: str, mask: MaskSettings, view: ViewSpec) -> Masker:
    """Build one mask, and try it.

    Raises:
        RecipeError: unknown sampler or setting, or one that does not suit its views.
    """
    entry = mask.sampler
    sampler = call(choose(entry, SAMPLERS, "mask sampler"), entry)
    if not isinstance(sampler, Sampler):
        raise RecipeError(f"{entry.where}: {entry.name} needs hidden(grid) and draw(...); add them")
    patch = patch_of(name, mask, view)
    grid = grid_of(name, mask, view, patch)
    try:
        hidden = sampler.hidden(grid)
    except ValueError as error:
        raise RecipeError(f"{unsuitable(mask, str(error))}: masks.{name}: {error}") from error
    whole = isinstance(hidden, int | np.integer)  # hidden() may be a user's own
    if hidden is not None and not (whole and 0 < hidden < math.prod(grid)):
        where = mask.where("patch_size") if math.prod(grid) == 1 else entry.where
        raise RecipeError(
            f"{where}: masks.{name} hides {hidden!r} of {math.prod(grid)} patches; "
            f"change the settings of {entry.name}, or the patch_size"
        )
    most = sampler.most(grid) if isinstance(sampler, WithinReal) else None
    built = Masker(
        name,
        sampler,
        MaskSpec(mask.view, mask.count, view.grid_axes, patch, grid, hidden, most),
    )
    try_masks(sampler.draw, built.spec, name=name, mask=mask)
    return built


def unsuitable(mask: MaskSettings, words: str) -> str:
    """Where the setting stands that a sampler says its grid does not suit: its own, or patch_size.

    words: as `unit = 3 does not divide the grid` or `a grid ...; set patch_size lower`.
    """
    setting = words.partition(" ")[0]
    if setting not in mask.sampler.lines and "patch_size" in words:
        return mask.where("patch_size")
    return mask.sampler.at(setting)


def patch_of(name: str, mask: MaskSettings, view: ViewSpec) -> tuple[int, ...]:
    """The sides of a patch along the masked axes; one number stands for all of them.

    Raises:
        RecipeError: they are not one per axis.
    """
    size, axes, where = mask.patch_size, view.grid_axes, mask.where("patch_size")
    patch = (size,) * len(axes) if isinstance(size, int) else tuple(size)
    if len(patch) != len(axes):
        raise RecipeError(
            f"{where}: masks.{name}.patch_size = {list(patch)} has {len(patch)} sizes, but views."
            f"{mask.view} have the {len(axes)} axes {axes} to mask; give one size, or one per axis"
        )
    return patch


def grid_of(name: str, mask: MaskSettings, view: ViewSpec, patch: Sequence[int]) -> Grid:
    """Count the patches along each axis: side by side, or where wider fields find room.

    Unpadded convolutions on each other make floor((n - field) / step) + 1 frames of n samples,
    with the product of their strides as step (wav2vec 2.0: field 400, step 320).

    Raises:
        RecipeError: patches do not fill the views, or not one field fits.
    """
    sides, field = tuple(view.size(axis) for axis in view.grid_axes), mask.receptive_field
    shown = " x ".join(map(str, sides))
    steps = list(zip(sides, patch, strict=True))
    if field is None:
        if any(side % step for side, step in steps):
            given = mask.patch_size if isinstance(mask.patch_size, int) else list(patch)
            raise RecipeError(
                f"{mask.where('patch_size')}: masks.{name}.patch_size = {given} does not divide "
                f"views.{mask.view} of {shown}; choose a divisor"
            )
        return tuple(side // step for side, step in steps)
    if min(sides) < field:
        raise RecipeError(
            f"{mask.where('receptive_field')}: masks.{name}.receptive_field = {field} is more than "
            f"views.{mask.view} of {shown} have; choose longer views"
        )
    return tuple((side - field) // step + 1 for side, step in steps)


def check_agreement(masks: Mapping[str, MaskSettings], built: Mapping[str, Masker]) -> None:
    """Raise a RecipeError if masks that are parts of one draw differ in what they share."""
    first: dict[tuple[str, type], tuple[str, object, Grid]] = {}  # by view group and sampler
    for name, made in built.items():
        if not isinstance(made.sampler, PartOfOneDraw):
            continue
        kind = (made.spec.view, type(made.sampler))
        mine = (made.sampler.whole, made.spec.grid)
        other, *theirs = first.setdefault(kind, (name, *mine))
        if tuple(theirs) != mine:
            alike = theirs[0] == made.sampler.whole
            where = masks[name].where("patch_size" if alike else "sampler")
            raise RecipeError(
                f"{where}: masks.{name} and masks.{other} are parts of one "
                f"{masks[name].sampler.name}; give them the same settings and patch_size"
            )
