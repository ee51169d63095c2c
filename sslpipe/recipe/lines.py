"""YAML as plain data that knows the line of every key and item, for messages with file:line."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from ..errors import RecipeError

NAMES = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")
INTEGER = "tag:yaml.org,2002:int"
OTHER_BASE = re.compile("[-+]?(0[0-7_]+|[0-9_]+(:[0-5]?[0-9])+)")  # 010 is 8, 1:30 is 90
PLACE = re.compile("[0-9]{1,9}")  # of an item in a list
MOST = 100_000  # entries of a recipe, those of aliases counted where they are used
KeyPath = tuple[str | int, ...]  # keys and indices from the root


@dataclass(frozen=True, slots=True)
class Places:
    """Where settings stand: the line of every key and item, and what was set from outside.

    All are equal, so that what keeps some is compared without them.
    """

    lines: Mapping[KeyPath, int] = field(default_factory=dict, compare=False)
    overrides: Mapping[KeyPath, str] = field(default_factory=dict, compare=False)  # as written
    seen: bool = field(default=True, compare=False)  # whether the user has the text to look at

    def where(self, path: str, place: KeyPath) -> str:
        """Name file:line of the nearest known ancestor of `place`, or the override that set it.

        Of a text that nobody sees the ancestor itself is named: `last.pt (recipe), stream.seed`.
        path: of the file; alone, it is what a place has of which nothing is written down.
        """
        above = [place[:size] for size in range(len(place), 0, -1)]
        for known in above:  # what it set hides the lines that stood below
            if known in self.overrides:
                return f"--set {self.overrides[known]}"
        found = next((known for known in above if known in self.lines), None)
        if found is None:
            return path
        return (
            f"{path}:{self.lines[found]}" if self.seen else f"{path}, {'.'.join(map(str, found))}"
        )

    def without(self, sections: Collection[str]) -> "Places":
        """Those of all other sections."""
        lines = {place: line for place, line in self.lines.items() if place[0] not in sections}
        overrides = {p: text for p, text in self.overrides.items() if p[0] not in sections}
        return Places(lines, overrides, self.seen)


@dataclass(frozen=True, slots=True)
class YamlFile:
    """A parsed YAML file: plain data, and where each of it stands."""

    path: str
    data: Any
    places: Places

    def where(self, place: KeyPath) -> str:
        """Name file:line of a place, as `Places.where`; line 1 where nothing is written down."""
        found = self.places.where(self.path, place)
        return f"{found}:1" if found == self.path and self.places.seen else found


def parse_yaml(
    text: str, path: str, overrides: Iterable[str] = (), *, seen: bool = True
) -> YamlFile:
    """Parse safe YAML, with the line of every node; a key that stands twice is an error.

    overrides: `a.b.c=value`, the value being YAML, set after reading. seen: whether the user has
    the text to look at; of others places are named, not lines.

    Raises:
        RecipeError: not YAML, a key that stands twice, or an override that leads nowhere.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        lines = numbered(root, path)
        data = yaml.safe_load(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        sign = f"U+{ord(text[error.position]):04X}"
        raise RecipeError(f"{path}:{line}: holds {sign}, which no YAML may; remove it") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"{path}:{line}: {problem_of(error)}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}:1: is no YAML ({error}); correct it") from error
    except (ValueError, RecursionError) as error:  # 2001-99-99, brackets without end
        raise RecipeError(f"{path}: is no YAML ({told(error)}); correct it") from error
    places = {override(data, text): text for text in overrides}
    return YamlFile(path, data, Places(lines, places, seen))


def problem_of(error: yaml.MarkedYAMLError) -> str:
    """What the parser says, with what it says before where that is half a sentence."""
    found = error.problem or "is no YAML"
    if "\\t" in found:
        return "has a tab, which YAML takes for no indentation; write blanks"
    if "another document" in found:
        return "begins another document (---), and a recipe is one; remove it"
    if found == "second occurrence":
        return f"{error.context}: this is the second; rename it"
    return f"{found}; correct the YAML"


def told(error: Exception) -> str:
    """What is wrong with a value that YAML cannot make."""
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def numbered(root: yaml.Node | None, path: str) -> dict[KeyPath, int]:
    """The line of every key and item.

    Raises:
        RecipeError: a key stands twice or is no text, or aliases make millions of entries.
    """
    lines: dict[KeyPath, int] = {}
    for number, (place, line) in enumerate(walk(root, (), path)):
        lines.setdefault(place, line)
        if number > MOST:
            raise RecipeError(f"{path}:{line}: has more than {MOST:,} entries; write fewer aliases")
    return lines


def override(data: Any, text: str) -> KeyPath:
    """Set one value in nested data; the sections on the way must exist.

    Raises:
        RecipeError: no `=`, or no such section.
    """
    path, equals, value = text.partition("=")
    if not equals:
        raise RecipeError(f"--set {text}: write key=value, e.g. stream.batch_size=64")
    place: KeyPath = tuple(int(part) if PLACE.fullmatch(part) else part for part in path.split("."))
    known = 0  # keys of the path that lead somewhere
    try:
        for part in place[:-1]:
            data = data[part]
            known += data is not None
        for _ in walk(yaml.compose(value, Loader=yaml.SafeLoader), (), f"--set {text}"):
            pass  # it raises on keys that stand twice
        data[place[-1]] = yaml.safe_load(value)
    except (KeyError, IndexError, TypeError):
        hint = "check the path"
        if 0 < known < len(place) - 1:
            whole = "".join(f"{{{key}: " for key in place[known + 1 :]) + value
            whole += "}" * len(place[known + 1 :])
            hint += f", or write the section: '{'.'.join(map(str, place[: known + 1]))}={whole}'"
        raise RecipeError(f"--set {text}: the recipe has no {path!r}; {hint}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"--set {text}: the value is not YAML; quote it") from error
    return place


def walk(node: yaml.Node | None, place: KeyPath, path: str) -> Iterator[tuple[KeyPath, int]]:
    """Yield every key and item of a YAML tree with its line, counted from 1.

    Raises:
        RecipeError: a key that is no name or stands twice, or a number that YAML counts by 8 or 60.
    """
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag not in NAMES:  # 3, yes, null, [a]: no section or setting is called so
                name = repr(key.value) if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                raise RecipeError(f"{path}:{line}: {name} is no name of a setting; quote it")
            if key.value in seen:
                raise RecipeError(f"{path}:{line}: {key.value!r} stands twice; keep one")
            seen.add(key.value)
            yield (*place, key.value), line
            yield from walk(value, (*place, key.value), path)
    elif isinstance(node, yaml.ScalarNode):
        if node.tag == INTEGER and OTHER_BASE.fullmatch(node.value):
            line = node.start_mark.line + 1
            made = yaml.safe_load(node.value)
            raise RecipeError(
                f"{path}:{line}: {node.value} is {made} to YAML, which counts by 8 or 60 here; "
                "write the number without the zero or colon, or quote a text"
            )
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*place, index), value.start_mark.line + 1
            yield from walk(value, (*place, index), path)
