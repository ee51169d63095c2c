"""Which modality a name of a recipe, of a packed set or of `--modality` means."""

import pkgutil
from importlib import import_module
from pathlib import Path
from typing import cast

from ..errors import RecipeError
from ..recipe import Entry, Recipe
from ..recipe.names import imported, suggest
from . import Modality
from .returned import checked_modality, given


def modality_of(recipe: Recipe, group: str | None = None) -> Modality:
    """The modality of a view group; None: the recipe's.

    Raises:
        RecipeError: as `find_modality`, and says where it is named.
    """
    own = recipe.views[group].modality if group is not None else None
    if own is None:
        return find_modality(recipe.modality, recipe.where("modality"))
    return find_modality(own, recipe.where("views", str(group), "modality"))


def find_modality(name: str, where: str = "modality") -> Modality:
    """A folder of this package by its name, or the user's own `package.module:Thing`.

    A class is made an instance without arguments.

    Raises:
        RecipeError: there is no such modality, or it is none; says which there are.
    """
    if ":" in name:
        thing = imported(Entry(name, where=where))
        made = thing if not isinstance(thing, type) else given(f"{where}: {name}", Modality, thing)
        return checked_modality(made, f"{where}: {name}", shipped_modalities())
    if name not in shipped_modalities():
        raise RecipeError(
            f"{where}: unknown modality {name!r}; {suggest(name, shipped_modalities())}, or your "
            "own as package.module:Thing"
        )
    return cast(Modality, import_module(f".{name}", __package__).MODALITY)


def shipped_modalities() -> list[str]:
    """Names of the modalities that come with the package: the folders beside this file."""
    modules = pkgutil.iter_modules([str(Path(__file__).parent)])
    return [module.name for module in modules if module.ispkg]
