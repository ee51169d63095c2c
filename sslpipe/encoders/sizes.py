"""How large the parts of a backbone or a method may be, told before anything is built.

A depth of 2^40 would be built, block after block, until the memory or the user's patience ends.
The largest models that were ever published stay below a tenth of these limits.
"""

from collections.abc import Mapping
from typing import Any

from ..errors import RecipeError
from ..recipe.names import Entry, shown

DEPTH, WIDTH, ROWS = 4096, 65_536, 2**24
# the last word of a setting says what it counts; others build nothing or must suit the views
LIMITS: Mapping[str, int] = {
    **dict.fromkeys(("depth", "blocks", "layers", "heads", "groups", "codebooks"), DEPTH),
    **dict.fromkeys(("dim", "width", "hidden", "inner", "embedding", "bottleneck"), WIDTH),
    **dict.fromkeys(("projector", "decoder", "kernel", "kernels", "slices", "knots"), WIDTH),
    **dict.fromkeys(("prototypes", "entries", "queue"), ROWS),
}


def check_most(entry: Entry, settings: Mapping[str, Any]) -> None:
    """Check that no setting of ours asks for more layers, features or rows than can be meant.

    `settings`: bound, defaults among them; None and what is no whole number passes.

    Raises:
        RecipeError: a number, or one of several, is above the limit of its kind.
    """
    for name, value in settings.items():
        most = LIMITS.get(name.rpartition("_")[2])
        if most and max(whole_numbers(value), default=0) > most:
            given = shown(entry.settings.get(name, value))
            raise RecipeError(
                f"{entry.where}: {entry.name}.{name} = {given}: is above {most:,}, more than any "
                "model has; correct the value"
            )


def check_sizes(entry: Entry, settings: Mapping[str, Any]) -> None:
    """Check the whole numbers of a backbone, each of which counts parts or their width.

    Raises:
        RecipeError: one is below 1 or above its limit, or the width is not one of its heads times
            their number.
    """
    for name, value in settings.items():
        if min(whole_numbers(value), default=1) < 1:
            raise RecipeError(
                f"{entry.where}: {entry.name}.{name} = {value}: is below 1; correct the value"
            )
    check_most(entry, settings)
    dim, heads = settings.get("dim"), settings.get("heads", 1)
    if isinstance(dim, int) and dim % heads:
        raise RecipeError(
            f"{entry.where}: {entry.name}: dim = {dim} is no multiple of heads = {heads}; set one"
        )


def whole_numbers(value: Any) -> list[int]:
    """The whole numbers of a setting, which is one, several, or none."""
    numbers = value if isinstance(value, tuple) else (value,)
    return [number for number in numbers if type(number) is int]
