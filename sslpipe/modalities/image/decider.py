"""DECIDE for images: which scale to decode at, then the tables of views, masks and tasks."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, Protocol, Self

import numpy as np
import numpy.typing as npt
import torch

from ...batch import ViewSpec, whole_group
from ...errors import RecipeError
from ...masks import MaskSettings, maskers
from ...recipe import Entry, Recipe
from ...recipe.schema import ViewSection
from ...rng import Place
from ...stream.source import Drawn
from .. import Tables
from . import jpeg
from .draws import draw, group_keys, policy
from .ops import CenterCrop, Resize
from .pretext import Pretext
from .scale import FACTORS, factors, least_box, needed, nominal
from .targets import pretext

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
DRAWN = 4096  # samples in one go, which bounds what is drawn on the way: 1 MB a view of SimCLR
DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
)


class ViewSettings(Protocol):
    """A view group of a recipe: fields of `schema.ViewSection`."""

    @property
    def count(self) -> int: ...
    @property
    def draws(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def ops(self) -> Sequence[Entry]: ...


class TargetSettings(Protocol):
    """A pretext task of a recipe: fields of `schema.TargetSection`."""

    @property
    def view(self) -> str: ...
    @property
    def task(self) -> Entry: ...


class ImageDecider:
    """All that a recipe decides of its image groups, checked and ready.

    size, scaled: the `decode` section of a recipe; they decide at which scale workers decode.
    trims: workers may leave out what no view reads; it is for decoders and makers of our own.

    Raises:
        RecipeError: an op, mask or task that does not exist or does not suit; says file:line.
    """

    def __init__(
        self,
        views: Mapping[str, ViewSettings],
        masks: Mapping[str, MaskSettings],
        targets: Mapping[str, TargetSettings],
        *,
        seed: int,
        size: int | None = None,
        scaled: Literal["auto", "never"] = "never",
        trims: bool = False,
    ) -> None:
        self.seed, self.size, self.auto = seed, size, scaled == "auto"
        self.policies = {
            name: policy(
                name,
                group.ops,
                count=group.count,
                shared=group.draws == "shared",
                dtype=DTYPES[group.dtype],
            )
            for name, group in views.items()
        }
        drawn = {name: group.spec for name, group in self.policies.items()}
        self.maskers = maskers(masks, drawn)
        self.views, self.pretexts = asked(targets, views, drawn)  # as batches hold them
        self.masks = {name: masker.spec for name, masker in self.maskers.items()}
        self.targets = {name: made.spec for name, made in self.pretexts.items()}
        for name, mask in masks.items():
            check_size(mask, name, drawn, self.views)
        # sides that a canvas must have to be scaled down at all
        boxes = [least_box(group) for group in self.policies.values()]
        whole = any(isinstance(group.crop, Resize) for group in self.policies.values())
        self._trims = trims and not whole
        self._least = FACTORS[-1] * np.max(boxes, axis=0, initial=1)

    @classmethod
    def of_recipe(cls, recipe: Recipe, groups: Sequence[str], *, trims: bool = False) -> Self:
        """For some view groups of a recipe, with the masks and tasks on them."""
        return cls(
            {name: recipe.views[name] for name in groups},
            {name: mask for name, mask in recipe.masks.items() if mask.view in groups},
            {name: target for name, target in recipe.targets.items() if target.view in groups},
            seed=recipe.stream.seed,
            size=recipe.decode.size,
            scaled=recipe.decode.scaled,
            trims=trims,
        )

    @property
    def summaries(self) -> dict[str, str]:
        """How many views of which size each group has, and its ops."""
        return {name: group.summary for name, group in self.policies.items()}

    def instructions(self, *, epochs: I64, uids: I64, extents: I64) -> I64:
        """(B, 1): the factor by which each image is scaled down while it is decoded.

        extents: (B, 2 or more), first the height and width of the upright image; zeros: not known.
        """
        return self._factors(epochs, uids, extents)[:, None]

    def _factors(
        self, epochs: I64, uids: I64, extents: I64, drawn: Mapping[str, F32] | None = None
    ) -> I64:
        """(B,) as `instructions`; drawn: the parameters of views, if they are."""
        # most sets of small images stop here: the rest costs 60 us a call
        if not self.auto or (extents[:, :2] < self._least).any(-1).all():
            return np.ones(len(uids), dtype=np.int64)
        return factors(
            tuple(self.policies.values()), seed=self.seed, size=self.size, epochs=epochs,
            uids=uids, sides_B2=extents[:, :2], drawn=drawn,
        )  # fmt: skip

    def _told(self, epochs: I64, uids: I64, extents: I64, drawn: Drawn) -> I64 | None:
        """(B, 1 or 3): the factor, and the `Box` of pixels that views read of a canvas that is not
        shrunk. None: where it is small, the box would cost more than it saves.
        """
        (height_B, width_B), (tall_B, wide_B) = extents[:, :2].T, drawn.extents.T
        if np.minimum(height_B, width_B).max(initial=0) <= SMALL:
            return None
        factor_B = self._factors(epochs, uids, extents, drawn.params)
        # axis by axis: a reduction of two numbers at a time takes three times as long
        whole_B = (factor_B > 1) | (height_B != tall_B) | (width_B != wide_B)
        if not self._trims or whole_B.all():
            return factor_B[:, None]
        told_B3 = np.empty((len(uids), 3), dtype=np.int64)
        told_B3[:, 0] = factor_B
        told_B3[:, 1:] = needed(tuple(self.policies.values()), drawn.params, extents[:, :2])
        if whole_B.any():
            told_B3[whole_B, 1:] = jpeg.WHOLE
        return told_B3

    def decide(self, *, epochs: I64, uids: I64, place: Place, extents: I64) -> Tables:
        """The tables of a batch; extents: (B, 2) nominal height and width of its canvases."""
        params = self._params(epochs, uids, extents)
        return self._tables(params, epochs=epochs, uids=uids, place=place, extents=extents)

    def draw_ahead(self, *, epochs: I64, uids: I64, extents: I64) -> Drawn | None:
        """The parameters of views; None where the index does not know the sides of all images."""
        if not extents[:, :2].all():
            return None
        nominal_B2, starts = nominal(extents[:, :2], self.size), range(0, len(uids), DRAWN)
        pieces = [
            self._params(*(each[start : start + DRAWN] for each in (epochs, uids, nominal_B2)))
            for start in starts
        ]
        params = pieces[0]
        if len(pieces) > 1:
            params = {
                name: np.concatenate([piece[name] for piece in pieces], axis=1)
                for name in self.policies
            }
        drawn = Drawn(epochs, uids, nominal_B2, params)
        return drawn._replace(told=self._told(epochs, uids, extents, drawn))

    def decide_drawn(
        self, drawn: Drawn, *, epochs: I64, uids: I64, place: Place, extents: I64
    ) -> Tables:
        """The tables that `decide` would give, with the parameters that are drawn already."""
        params = {**drawn.params}
        return self._tables(params, epochs=epochs, uids=uids, place=place, extents=extents)

    def _params(self, epochs: I64, uids: I64, sides_B2: I64) -> dict[str, F32]:
        """What is drawn for the views of each group."""
        return {
            name: draw(group, group_keys(group, seed=self.seed, epochs=epochs, uids=uids), sides_B2)
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
            targets={
                name: made.draw(seed=self.seed, epochs=epochs, uids=uids)
                for name, made in self.pretexts.items()
            },
            extents=extents,
        )


def asked(
    targets: Mapping[str, TargetSettings],
    views: Mapping[str, ViewSettings],
    drawn: Mapping[str, ViewSpec],
) -> tuple[dict[str, ViewSpec], dict[str, Pretext]]:
    """The tasks of a recipe, each on what those before it made of its group, and what they leave.

    Raises:
        RecipeError: unknown task or setting, or a view group that does not suit it.
    """
    specs, pretexts = dict(drawn), {}
    for name, target in targets.items():
        ops = [op.name for op in views[target.view].ops]
        pretexts[name] = made = pretext(
            name, target.task, view=target.view, spec=specs[target.view], ops=ops
        )
        specs[target.view] = made.view_spec
    return specs, pretexts


def check_size(
    mask: MaskSettings, name: str, drawn: Mapping[str, ViewSpec], left: Mapping[str, ViewSpec]
) -> None:
    """Raise a RecipeError if a task cuts up the views that a mask covers."""
    before, after = (s.shape[1:] for s in (drawn[mask.view], left[mask.view]))
    if before != after:
        raise RecipeError(
            f"{mask.sampler.where}: masks.{name} covers views.{mask.view} of {before[0]} x "
            f"{before[1]} px, which a task makes {after[0]} x {after[1]}; mask another group"
        )


SMALL = 64  # pixels: images of CIFAR's kind are taken whole
MARGIN = 256 / 224  # the field's test transform: resize to 256, crop 224


def evaluation_views(recipe: Recipe) -> dict[str, ViewSection]:
    """One central view per sample with the training views' normalisation.

    Above 64 px the shorter side is resized to 256/224 of the view first, as is the custom. A crop
    that draws nothing is kept as it is: libraries' models say how their pictures are cropped.
    """
    group = recipe.views[whole_group(recipe.views)]
    size = group.ops[0].settings["size"]
    resize = max(size) if max(size) <= SMALL else round(max(size) * MARGIN)
    crop = Entry(CenterCrop.__name__, {"size": size, "resize": resize})
    if group.ops[0].name in (CenterCrop.__name__, Resize.__name__):
        crop = group.ops[0]
    normalize = [op for op in group.ops if op.name == "Normalize"]
    return {"global": ViewSection(ops=(crop, *normalize))}
