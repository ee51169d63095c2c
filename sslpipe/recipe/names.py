"""From a name and settings in a recipe to a call, by strict binding to keyword-only parameters.

It knows nothing of recipes, images or methods; it stands below both the data side and the method
side, so that ops, masks, targets, methods, backbones and optimizers are bound by the same rules.
"""

import difflib
import functools
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, get_type_hints

import pydantic

from ..errors import RecipeError

EXPONENT = re.compile(r"[-+]?[0-9.]+[eE][-+]?[0-9]+")  # numbers to all but YAML 1.1


@dataclass(frozen=True, slots=True)
class Entry:
    """`{name: {setting: value}}` of a recipe, and where it stands (`file:line`)."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    where: str = "settings"
    lines: Mapping[str, str] = field(default_factory=dict, compare=False)  # of each setting

    def at(self, setting: str) -> str:
        """Name file:line of one of its settings; that of the entry where it is a default."""
        return self.lines.get(setting, self.where)

    def told(self, words: str) -> str:
        """Say what is wrong with it, at the setting which the words begin with, `ratio = 2 ...`."""
        return f"{self.at(words.partition(' ')[0])}: {self.name}: {words}"


def suggest(name: str, known: Iterable[str]) -> str:
    """Say `did you mean 'x'?` and what is known; the end of a message."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known: {', '.join(names)}"


def choose(entry: Entry, known: Mapping[str, Any], kind: str) -> Any:
    """Return `known[entry.name]`, or import `package.module:Thing`.

    Raises:
        RecipeError: no such name.
    """
    if entry.name in known:
        return known[entry.name]
    if ":" in entry.name:
        return imported(entry)
    raise RecipeError(
        f"{entry.where}: unknown {kind} {shown(entry.name)}; {suggest(entry.name, known)}"
    )


def imported(entry: Entry) -> Any:
    """Import the user's own `package.module:Thing`, which runs its module.

    Raises:
        RecipeError: the module or the attribute does not exist.
    """
    module, _, attribute = entry.name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise RecipeError(
            f"{entry.where}: cannot import {entry.name!r} ({error}); "
            "write package.module:Thing and make sure the package is importable"
        ) from error


def keyword_settings(function: Callable[..., Any]) -> dict[str, Any]:
    """Find the keyword-only parameters of a callable: name -> (type, default or ...)."""
    call = function.__init__ if inspect.isclass(function) else function
    hints = get_type_hints(call)
    parameters = inspect.signature(function).parameters.values()
    return {
        p.name: (hints[p.name], ... if p.default is p.empty else p.default)
        for p in parameters
        if p.kind is p.KEYWORD_ONLY
    }


@functools.cache
def settings_model(function: Callable[..., Any]) -> type[pydantic.BaseModel]:
    """Make the model that checks the keyword-only parameters of a callable."""
    config = pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)
    fields: dict[str, Any] = keyword_settings(function)
    return pydantic.create_model("Settings", __config__=config, **fields)


def bind(function: Callable[..., Any], entry: Entry) -> dict[str, Any]:
    """Check `entry.settings` against the keyword-only parameters of `function`; add defaults.

    Numbers that YAML reads as strings (`1e-4`) and lists for tuples are accepted.

    Raises:
        RecipeError: unknown or missing setting, a wrong type, or a number that is infinite or none;
            names it and what is known.
    """
    fields = keyword_settings(function)
    try:
        checked = settings_model(function).model_validate(dict(entry.settings))
    except pydantic.ValidationError as error:
        raise RecipeError(explain(error, entry, fields)) from None
    found = {name: getattr(checked, name) for name in fields}
    if place := misread(entry.settings, found):
        given = shown(entry.settings[place[0]])
        raise RecipeError(
            f"{entry.at(place[0])}: {entry.name}.{place[0]} = {given}: holds {BOOLEAN}"
        )
    for name, given in entry.settings.items():
        if reason := unfit(found[name]):
            raise RecipeError(f"{entry.at(name)}: {entry.name}.{name} = {shown(given)}: {reason}")
    return found


BOOLEAN = "yes or no, where a number is wanted; write the number"
LARGEST, SMALLEST = 3.4e38, 1.2e-38  # of 32-bit numbers, which weights and pixels are
MOST = 2**48  # of whole numbers, whose products stay below 2**63
LONGEST = 200  # characters of a value in a message


def unfit(value: Any) -> str | None:
    """Say what is wrong with a number that no tensor holds, or with one inside; None: nothing."""
    if isinstance(value, Mapping | list | tuple):
        inner = value.values() if isinstance(value, Mapping) else value
        return next(filter(None, map(unfit, inner)), None)
    if isinstance(value, int) and abs(value) > MOST:
        return f"is beyond {MOST:,}; correct the value"
    if isinstance(value, float) and value and not SMALLEST <= abs(value) <= LARGEST:
        return "is beyond numbers of 32 bits, 1.2e-38 to 3.4e+38; correct the value"
    return None


def shown(value: Any) -> str:
    """Write a value as a message holds it: on one line, and its beginning where it is long."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def misread(given: Any, made: Any, place: tuple[Any, ...] = ()) -> tuple[Any, ...] | None:
    """Where a yes or no of YAML became a number, as pydantic lets it; None: nowhere."""
    if isinstance(given, bool):
        return place if isinstance(made, int | float) and not isinstance(made, bool) else None
    if isinstance(given, Mapping) and isinstance(made, Mapping):
        pairs = [(key, value, made[key]) for key, value in given.items() if key in made]
    elif isinstance(given, list) and isinstance(made, list | tuple) and len(given) == len(made):
        pairs = [(at, *both) for at, both in enumerate(zip(given, made, strict=True))]
    else:
        return None
    found = (misread(value, inner, (*place, key)) for key, value, inner in pairs)
    return next(filter(None, found), None)


def remedy(value: Any) -> str:
    """What to do about a value that is not what is wanted, which YAML may have read otherwise."""
    if isinstance(value, bool):
        return "YAML reads yes, no, on and off as true and false: quote what is a text"
    if isinstance(value, date):
        return "YAML reads it as a date: quote it"
    if isinstance(value, str) and EXPONENT.fullmatch(value):
        return "YAML reads it as a text: write it out, or with a point and a sign, 1.0e+3"
    return "correct the value"


def check_callable(
    function: Callable[..., Any],
    entry: Entry,
    arguments: Sequence[Any],
    settings: Mapping[str, Any],
) -> None:
    """Whether something of the user's can be called like this at all.

    Raises:
        RecipeError: it is an abstract class, or takes other arguments.
    """
    if inspect.isabstract(function):
        lacking = ", ".join(sorted(vars(function)["__abstractmethods__"]))
        raise RecipeError(f"{entry.where}: {entry.name} lacks {lacking}; write it")
    try:
        inspect.signature(function).bind(*arguments, **settings)
    except TypeError as error:
        raise RecipeError(
            f"{entry.where}: {entry.name}: {error}; it is called with {len(arguments)} values and "
            "its settings, which are keyword-only: write them behind a *"
        ) from None


def explain(error: pydantic.ValidationError, entry: Entry, fields: Iterable[str]) -> str:
    """Say the first fault of a failed binding in one sentence."""
    faults = error.errors()  # a misspelt setting is also a missing one: say the first
    fault = next((f for f in faults if f["type"] == "extra_forbidden"), faults[0])
    setting = ".".join(str(part) for part in fault["loc"][:1])
    where = entry.at(setting)
    if fault["type"] == "extra_forbidden":
        known = suggest(setting, fields)
        return f"{where}: {entry.name} has no setting {setting!r}; {known}"
    value = entry.settings.get(setting)
    if fault["type"] == "missing" and len(fault["loc"]) > 1 and isinstance(value, Sequence):
        lacking = sum(f["type"] == "missing" and f["loc"][0] == fault["loc"][0] for f in faults)
        what = f"has {len(value)} of {len(value) + lacking} values"
        return f"{where}: {entry.name}.{setting} = {shown(value)}: {what}; write them all"
    if fault["type"] == "missing":
        return f"{where}: {entry.name} needs the setting {setting!r}; add it"
    reason = fault["msg"].lower()
    return f"{where}: {entry.name}.{setting} = {shown(value)}: {reason}; {remedy(value)}"


def call(function: Callable[..., Any], entry: Entry, *arguments: Any) -> Any:
    """Call `function(*arguments, **settings)`, with settings bound strictly.

    Raises:
        RecipeError: as `bind`; also a ValueError of the function itself, with the place added; or
            a class of the user's that lacks methods, or takes other arguments.
    """
    settings = bind(function, entry)
    check_callable(function, entry, arguments, settings)
    try:
        return function(*arguments, **settings)
    except ValueError as error:
        words = str(error)
        hint = "" if ";" in words else "; correct the value"
        raise RecipeError(entry.told(f"{words}{hint}")) from error
