"""Recipes: YAML files that are checked as a whole before anything starts."""

from .names import Entry
from .parse import find_recipe, load_recipe, parse_recipe, recipes
from .schema import Recipe

__all__ = ["Entry", "Recipe", "find_recipe", "load_recipe", "parse_recipe", "recipes"]
