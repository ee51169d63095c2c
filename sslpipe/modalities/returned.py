"""Whether what an extension returns is what it said: told where it returns it, with its class.

A batch costs comparisons of tuples. Without them a view of another size goes into the batch, or
NumPy spreads one drawn column over all of an op's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from ..errors import ContractError, RecipeError
from ..shards.codec import EXTENTS, Codec
from . import Modality
from .messages import Made, Tables, class_of

if TYPE_CHECKING:  # what workers import leads here, and must not wait for torch
    from torch import Tensor

    from ..batch import TargetSpec, ViewSpec
    from ..recipe import Recipe
    from . import Decider

T = TypeVar("T")


def given(author: str, kind: Any, make: Callable[[], T]) -> T:
    """What somebody gives, which must be one of our Protocols.

    author: who gives it, for messages.

    Raises:
        RecipeError: it is none, or lacks a member that has no default.
    """
    name = kind.__name__
    if inspect.isabstract(make):
        lacking = ", ".join(sorted(vars(make)["__abstractmethods__"]))
        raise RecipeError(f"{author} lacks {lacking}; write it, as in sslpipe.modalities.{name}")
    try:
        made = make()
    except TypeError as error:
        if "abstract class" not in str(error):
            raise
        raise RecipeError(
            f"{author}: {error}; write it, as in sslpipe.modalities.{name}"
        ) from error
    if not isinstance(made, kind):
        raise RecipeError(
            f"{author}: gave a {type(made).__name__}, which is no {name}; derive it from "
            f"sslpipe.modalities.{name}"
        )
    return made


def checked_modality(made: object, author: str, shipped: Sequence[str]) -> Modality:
    """Something of a user's as a modality; `author`: where it is named, for messages.

    Raises:
        RecipeError: it is none, or its codec packs what no recipe can name, or nothing.
    """
    modality = cast(Modality, given(author, Modality, lambda: made))
    codec: Codec = given(author, Codec, lambda: modality.codec)
    extensions, who = codec.extensions, f"{author}: {class_of(codec)}"
    if not 0 < len(codec.extents) <= EXTENTS:
        raise RecipeError(
            f"{who}: extents = {codec.extents!r}; name one to {EXTENTS} numbers that say how large "
            "a sample is"
        )
    if ":" not in codec.modality and codec.modality not in shipped:
        raise RecipeError(
            f"{who}: modality = {codec.modality!r} can be found by nobody; write the name that "
            "recipes have for it, package.module:Thing"
        )
    if not isinstance(extensions, frozenset) or any(e.lower().strip(".") != e for e in extensions):
        raise RecipeError(
            f"{who}: extensions = {extensions!r}; write a frozenset of lower-case names without "
            "dots, such as frozenset({'csv'})"
        )
    return modality


def check_groups(recipe: Recipe, decider: Decider, groups: Sequence[str]) -> None:
    """Compare what a decider names with what the recipe wants of its groups.

    Raises:
        RecipeError: it leaves out a group, a mask or a task.
    """
    masks = [name for name, mask in recipe.masks.items() if mask.view in groups]
    targets = [name for name, target in recipe.targets.items() if target.view in groups]
    for section, names, found in (
        ("views", groups, decider.views),
        ("masks", masks, decider.masks),
        ("targets", targets, decider.targets),
    ):
        for name in names:
            if name not in found:
                raise RecipeError(
                    f"{recipe.where(section, name)}: {class_of(decider)} decides no "
                    f"{section}.{name}, only {sorted(found)}; take it out, or let the decider "
                    "name and decide it"
                )


def check_shape(author: object, what: str, found: Sequence[int], wanted: Sequence[int]) -> None:
    """Compare the shape of what was returned with what was said.

    author: the instance that returned it. what: in words: "draw() returned a table".

    Raises:
        ContractError: they differ.
    """
    if tuple(found) != tuple(wanted):
        raise ContractError(
            f"{class_of(author)}: {what} of shape {tuple(found)}, where its spec says "
            f"{tuple(wanted)}; correct one of them"
        )


def check_kind(author: object, what: str, found: object, wanted: type) -> None:
    """Compare the class of what was returned with what is wanted; `what` as "draw() returned".

    Raises:
        ContractError: it is another.
    """
    if not isinstance(found, wanted):
        raise ContractError(
            f"{class_of(author)}: {what} {type(found).__name__}, not {wanted.__name__}; return one"
        )


def check_type(author: object, what: str, found: object, wanted: object) -> None:
    """Compare the dtype of what was returned with what was said.

    Raises:
        ContractError: they differ.
    """
    if found != wanted:
        raise ContractError(
            f"{class_of(author)}: {what} of {found}, where its spec says {wanted}; "
            "correct one of them"
        )


def check_made(author: object, made: object) -> None:
    """Whether a maker returned dicts of tensors.

    Raises:
        ContractError: it did not.
    """
    from torch import Tensor

    check_kind(author, "make() returned", made, Made)
    assert isinstance(made, Made)
    for field, tensors in made._asdict().items():
        check_kind(author, f"make() returned as {field}", tensors, dict)
        for name, tensor in tensors.items():
            check_kind(author, f"make() returned as {field}[{name!r}]", tensor, Tensor)


def check_views(
    author: object, views: Mapping[str, Tensor], specs: Mapping[str, ViewSpec], rows: int
) -> None:
    """Compare the views of a batch of `rows` with the specs of their groups.

    Raises:
        ContractError: a group is missing, or its shape or type is another.
    """
    for name, spec in specs.items():
        if name not in views:
            raise ContractError(
                f"{class_of(author)}: make() returned views of {sorted(views)}, not of {name!r}, "
                "which its decider names; make them"
            )
        what = f"make() returned views {name!r}"
        found, wanted = tuple(views[name].shape), (spec.count, rows, *spec.shape)
        if spec.axes in ("L", "T") and found[-1] < wanted[-1]:  # a batch of a bucket is shorter
            found = (*found[:-1], wanted[-1])
        check_shape(author, what, found, wanted)
        check_type(author, what, views[name].dtype, spec.dtype)


def check_image(author: object, found: object, given: Tensor) -> None:
    """Compare the images that an op returned with those that it was given.

    Raises:
        ContractError: they are no tensor, or of another shape, type or device.
    """
    what = "apply() returned images"
    check_kind(author, "apply() returned", found, type(given))
    assert isinstance(found, type(given))
    check_shape(author, what, found.shape, given.shape)
    for kind in ("dtype", "device"):
        wanted, is_now = getattr(given, kind), getattr(found, kind)
        if is_now != wanted:
            raise ContractError(
                f"{class_of(author)}: {what} of {kind} {is_now}, and was given {wanted}; leave the "
                f"{kind} as it is"
            )


def check_finite(author: object, what: str, found: Tensor) -> None:
    """Whether all numbers are finite; `what`: what returned them, "apply()".

    Raises:
        ContractError: some are not.
    """
    if not found.isfinite().all():
        raise ContractError(
            f"{class_of(author)}: {what} returned NaN or infinity, given images in [0, 1]; "
            "return finite numbers"
        )


def check_keyed(author: object, what: str, same: bool) -> None:
    """Whether two calls alike returned the same.

    Raises:
        ContractError: they did not.
    """
    if not same:
        raise ContractError(
            f"{class_of(author)}: {what} returned other values when it was called again; take all "
            "that is random from the keys that draw() is given, so that a run can be resumed"
        )


def check_tables(decider: Decider, tables: Tables, rows: int) -> None:
    """Compare the tables of a batch of `rows` with the specs of its groups, masks and tasks.

    Raises:
        ContractError: a mask or target is missing, or a shape or type is another.
    """
    check_kind(decider, "decide() returned", tables, Tables)
    for what, found, wanted in (
        ("masks", tables.masks, decider.masks), ("targets", tables.targets, decider.targets),
    ):  # fmt: skip
        if set(found) != set(wanted):
            raise ContractError(
                f"{class_of(decider)}: decide() returned {what} {sorted(found)}, where its specs "
                f"name {sorted(wanted)}; decide all of them"
            )
    for name, table in tables.params.items():
        what = f"decide() returned params {name!r}"
        check_type(decider, what, table.dtype, np.dtype(np.float32))
        columns = len(decider.views[name].columns) if name in decider.views else 0
        check_shape(decider, what, table.shape, (len(table), rows, columns))
    for name, mask in decider.masks.items():
        drawn, what = tables.masks[name], f"decide() returned masks {name!r}"
        check_type(decider, what, drawn.dtype, np.dtype(np.bool_))
        # of a bucket: fewer
        patches = min(drawn.shape[-1], mask.patches) if mask.most else mask.patches
        check_shape(decider, what, drawn.shape, (mask.count, rows, patches))


def check_targets(author: object, targets: Tensor, spec: TargetSpec, samples: int) -> None:
    """Compare the targets of a batch with their spec; on a device it waits for the ids.

    Raises:
        ContractError: their shape or type is another, or a class id lies outside.
    """
    what, wanted = "apply() returned targets", (spec.count, samples, *spec.shape)
    check_shape(author, what, targets.shape, wanted)
    dtype = "torch.float32" if spec.classes is None else "torch.int64"
    check_type(author, what, str(targets.dtype), dtype)
    if spec.classes is None or not targets.numel():
        return
    low, high = int(targets.min()), int(targets.max())
    if not 0 <= low <= high < spec.classes:
        raise ContractError(
            f"{class_of(author)}: apply() returned class ids from {low} to {high}, where its spec "
            f"says {spec.classes} classes; correct one of them"
        )
