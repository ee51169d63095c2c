"""From a recipe file to a validated Recipe, with file:line in every message."""

from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import pydantic

from ..errors import RecipeError
from ..process import regular_file
from .lines import KeyPath, YamlFile, parse_yaml
from .names import BOOLEAN, Entry, misread, remedy, shown, suggest, unfit
from .schema import SECTIONS, Recipe
from .sections import Section, parse_entry


def load_recipe(path: str | Path, *, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe: a file, or one that ships with us by its name ("simclr").

    Overrides are `section.key=value`, as `--set` takes them: ["stream.batch_size=64"].

    Raises:
        RecipeError: no such file or name, no YAML, or it breaks the schema; says file:line.
    """
    path = find_recipe(path)
    try:
        text = regular_file(path).read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{path}: is no text (byte {error.start} is not UTF-8); name a recipe in YAML"
        ) from error
    return parse_recipe(text, path=str(path), overrides=overrides)


def find_recipe(name: str | Path) -> Path:
    """Return a path as it is, and look a bare name up among the recipes that ship with us.

    Raises:
        RecipeError: neither exists; says which recipes there are.
    """
    path = Path(name)
    if path.is_file() or path.suffix in {".yaml", ".yml"} or len(path.parts) > 1:
        return path
    shipped = recipes()
    if str(name) not in shipped:
        raise RecipeError(
            f"recipe {str(name)!r}: no such file and no such recipe; {suggest(str(name), shipped)}"
        )
    return shipped[str(name)]


def recipes() -> dict[str, Path]:
    """Find the recipes that ship with the package: name -> file."""
    inside = Path(__file__).parents[1] / "pipelines"  # in a wheel
    folder = inside if inside.is_dir() else Path(__file__).parents[2] / "pipelines"
    return {path.stem: path for path in sorted(folder.glob("*/*.yaml"))}


def parse_recipe(
    text: str, *, path: str = "<recipe>", overrides: Sequence[str] = (), seen: bool = True
) -> Recipe:
    """Validate the text of a recipe.

    seen: whether the user has the text to look at; if not, messages name settings, not lines.

    Raises:
        RecipeError: it is not YAML, or breaks the schema; says file:line.
    """
    source = parse_yaml(text, path, overrides, seen=seen)
    if not isinstance(source.data, dict):
        found = "is empty" if source.data is None else f"is {said(source.data)}"
        raise RecipeError(
            f"{path}:1: {found}; a recipe is a mapping of sections, see pipelines/README.md"
        )
    if "path" in source.data:  # a field of Recipe, and no key of a file
        where = source.where(("path",))
        raise RecipeError(f"{where}: unknown key 'path'; {suggest('path', known_keys(()))}")
    try:
        data = {**located(source.data, (), source), "path": path}
        recipe = Recipe.model_validate(data, context=source.places)
    except pydantic.ValidationError as error:
        raise RecipeError(explain(error, source)) from None
    if place := misread(source.data, recipe.model_dump()):
        given = reduce(lambda data, key: data[key], place, source.data)
        name = ".".join(map(str, place))
        raise RecipeError(f"{source.where(place)}: {name} = {given!r}: is {BOOLEAN}")
    check_numbers(recipe, (), source)
    check_names(recipe, source)
    return recipe


SEED = ("stream", "seed")  # which is hashed, and never multiplied


def check_numbers(section: Section, place: KeyPath, source: YamlFile) -> None:
    """Raise a RecipeError if a number of a section is one that no tensor holds.

    Those of entries are checked where they are bound.
    """
    for name in type(section).model_fields:
        value, here = getattr(section, name), (*place, name)
        groups = value if isinstance(value, dict) else {}
        for key, inner in groups.items():
            if isinstance(inner, Section):
                check_numbers(inner, (*here, key), source)
        if isinstance(value, Section):
            check_numbers(value, here, source)
        elif (reason := unfit(value)) and here != SEED:
            words = f"{'.'.join(map(str, here))} = {shown(value)}"
            raise RecipeError(f"{source.where(here)}: {words}: {reason}")


def said(data: Any) -> str:
    """What a document is that is no mapping."""
    return "a list" if isinstance(data, list) else repr(data)[:60]


ENTRIES = ("ops", "sampler", "task", "method", "backbone", "optimizer")


def located(data: Any, place: KeyPath, source: YamlFile) -> Any:
    """Turn the named entries into Entry objects that know their file:line."""
    if isinstance(data, dict):
        return {k: located_value(k, v, (*place, k), source) for k, v in data.items()}
    return data


def located_value(key: str, value: Any, place: KeyPath, source: YamlFile) -> Any:
    """Locate one value of a section: an entry, a list of entries, or a deeper section."""
    if key not in ENTRIES:
        return located(value, place, source)
    if key == "ops" and isinstance(value, list):
        return [to_entry(v, (*place, i), source) for i, v in enumerate(value)]
    return to_entry(value, place, source)


def to_entry(value: Any, place: KeyPath, source: YamlFile) -> Entry:
    """Make an Entry that knows its place.

    Raises:
        RecipeError: it is neither a name nor one name with settings.
    """
    try:
        entry = parse_entry(value, None)  # type: ignore[arg-type]
    except ValueError as error:
        name = ".".join(map(str, place))
        raise RecipeError(
            f"{source.where(place)}: {name} = {shown(value)}: is no entry; {error}"
        ) from None
    inside = (*place, entry.name)
    lines = {key: source.where((*inside, key)) for key in entry.settings}
    return Entry(entry.name, entry.settings, source.where(inside), lines)


# what pydantic adds to a place where a value may be of several types
TAGS = {"[key]", "constrained-int", "constrained-float", "int", "float", "str"}


def explain(error: pydantic.ValidationError, source: YamlFile) -> str:
    """Say the first fault of a failed validation in one sentence with file:line."""
    faults = error.errors()  # a misspelt key is also a missing one: say the first
    # and of a value that may be of several types, what is wrong with it as the one that it is
    fault = min(faults, key=lambda f: (f["type"] != "extra_forbidden", "_type" in f["type"]))
    place = tuple(part for part in fault["loc"] if part not in TAGS and "[" not in str(part))
    where, name = source.where(place), ".".join(map(str, place))
    if fault["type"] == "extra_forbidden":
        known = known_keys(place[:-1])
        return f"{where}: unknown key {place[-1]!r}; {suggest(str(place[-1]), known)}"
    if fault["type"] == "missing":
        return f"{where}: {name} is missing; add it (see pipelines/README.md)"
    if fault["type"] in ("model_type", "dict_type"):
        return f"{where}: {name} = {shown(typed(fault['input']))}: is a section; write its keys"
    value = typed(fault["input"])
    return f"{where}: {name} = {shown(value)}: {reason_of(fault['msg'], value)}"


def reason_of(words: str, value: Any) -> str:
    """Say what is wrong and what to do; a check of ours may say both."""
    reason = words.removeprefix("Value error, ")  # as pydantic begins what a check of ours raises
    return reason if ";" in reason else f"{reason.lower()}; {remedy(value)}"


def typed(value: Any) -> Any:
    """Give a value as the user wrote it: entries are ours."""
    if isinstance(value, Entry):
        return {value.name: value.settings} if value.settings else value.name
    if isinstance(value, list | tuple):  # which may hold itself, so no deeper
        return [typed(item) if isinstance(item, Entry) else item for item in value]
    return value


def known_keys(place: KeyPath) -> list[str]:
    """List the keys that a section knows."""
    inner = SECTIONS.get(".".join(map(str, place)))
    model = inner or (SECTIONS.get(str(place[0]), Recipe) if place else Recipe)
    return [name for name in model.model_fields if name != "path"]


def check_names(recipe: Recipe, source: YamlFile) -> None:
    """Raise a RecipeError if a mask or a target points at a view group that does not exist."""
    for section, entries in (("masks", recipe.masks), ("targets", recipe.targets)):
        for name, entry in entries.items():
            if not recipe.views:
                raise RecipeError(
                    f"{source.where(('views',))}: views = {{}}: there are none, and "
                    f"{section}.{name} is of {shown(entry.view)}; write that view group"
                )
            if entry.view not in recipe.views:
                raise RecipeError(
                    f"{source.where((section, name, 'view'))}: {section}.{name}.view = "
                    f"{shown(entry.view)} is no view group; {suggest(entry.view, recipe.views)}"
                )
