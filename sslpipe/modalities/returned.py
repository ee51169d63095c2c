"""Whether what an extension returns is what it said: told where it returns it, with its class.

It costs a comparison of two tuples; without it a view of another size goes into the batch, or NumPy
spreads one drawn column over all of an op's.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from ..batch import TargetSpec, ViewSpec
from ..errors import ContractError


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
        found, wanted = tuple(views[name].shape), (spec.count, rows, *spec.shape)
        if spec.axes in ("L", "T") and found[-1] < wanted[-1]:  # a batch of a bucket is shorter
            found = (*found[:-1], wanted[-1])
        check_shape(author, f"make() returned views {name!r}", found, wanted)
        if views[name].dtype != spec.dtype:
            raise ContractError(
                f"{class_of(author)}: make() returned views {name!r} of {views[name].dtype}, where "
                f"its spec says {spec.dtype}; correct one of them"
            )


def check_targets(author: object, targets: Tensor, spec: TargetSpec, samples: int) -> None:
    """Compare the targets of a batch with their spec; on a device it waits for the ids.

    Raises:
        ContractError: their shape is another, or a class id lies outside.
    """
    wanted = (spec.count, samples, *spec.shape)
    check_shape(author, "apply() returned targets", targets.shape, wanted)
    if spec.classes is None or not targets.numel():
        return
    low, high = int(targets.min()), int(targets.max())
    if not 0 <= low <= high < spec.classes:
        raise ContractError(
            f"{class_of(author)}: apply() returned class ids from {low} to {high}, where its spec "
            f"says {spec.classes} classes; correct one of them"
        )


def class_of(author: object) -> str:
    """The class of an instance, as a recipe would name it."""
    return f"{type(author).__module__}:{type(author).__qualname__}"
