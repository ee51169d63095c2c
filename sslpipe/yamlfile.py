"""YAML as plain data that knows the line of every key and item, for messages with file:line."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from .errors import RecipeError

Place = tuple[str | int, ...]  # keys and indices from the root


@dataclass(frozen=True, slots=True)
class YamlFile:
    """A parsed YAML file: plain data, and the line of every key and item."""

    path: str
    data: Any
    lines: Mapping[Place, int]

    def where(self, path: Place) -> str:
        """`file:line` of the nearest known ancestor of `path`."""
        while path and path not in self.lines:
            path = path[:-1]
        return f"{self.path}:{self.lines.get(path, 1)}"


def parse_yaml(text: str, path: str) -> YamlFile:
    """Safe YAML with the line of every node; duplicate keys are errors."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        problem = getattr(error, "problem", None) or "not YAML"
        raise RecipeError(f"{path}:{line}: {problem}; correct the YAML") from error
    lines: dict[Place, int] = {}
    for place, line in walk(root, (), path):
        lines.setdefault(place, line)
    return YamlFile(path, data, lines)


def walk(node: yaml.Node | None, place: Place, path: str) -> Iterator[tuple[Place, int]]:
    """Every key and item of a YAML tree with its line, from 1."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                raise RecipeError(f"{path}:{line}: {key.value!r} stands twice; keep one")
            seen.add(key.value)
            yield (*place, key.value), line
            yield from walk(value, (*place, key.value), path)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*place, index), value.start_mark.line + 1
            yield from walk(value, (*place, index), path)
