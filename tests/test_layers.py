"""The house: every file is placed in the table on purpose, and imports go one way only."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter

import pytest

from .conftest import ROOT

PACKAGE = ROOT / "sslpipe"
GROUND = {"errors", "philox", "rng", "permutations", "batch", "process"}
DATA = {
    *GROUND,
    "recipe",
    "shards",
    "masks",
    "device",
    "stream",
    "modalities",
}
MODEL = {"encoders", "methods"}
ALLOWED = {  # room -> the rooms that it may import, besides itself
    "errors": set(),
    "philox": set(),
    "rng": {"philox"},
    "permutations": {"rng"},
    "batch": {"errors"},
    "process": {"errors"},
    "recipe": {"errors", "process"},
    "shards": {*GROUND, "recipe"},
    "masks": {*GROUND, "recipe"},
    "device": GROUND,
    "stream": {*GROUND, "recipe", "shards", "device"},
    "modalities": {*GROUND, "recipe", "shards", "masks", "device", "stream"},
    "pipeline": DATA,
    "augment": DATA,
    "memory": {*DATA, "pipeline", "step_memory"},
    "step_memory": {*DATA, "pipeline"},
    "watching": {*DATA, "pipeline", "bench", "diagnosis", "memory"},
    "integrations": {*DATA, "pipeline", "methods"},
    "diagnosis": set(),
    "encoders": {"batch", "errors", "recipe"},
    "methods": {"batch", "errors", "process", "recipe", "encoders"},
    "train": {*DATA, "pipeline", "memory", *MODEL},
    "evaluate": {*DATA, "pipeline", *MODEL, "train"},
    "export": {*DATA, "pipeline", "memory", *MODEL, "train"},
    "report": {*DATA, "pipeline", *MODEL, "train", "evaluate"},
    "deciding": {*DATA, "pipeline"},
    "bench": {*DATA, "pipeline", "memory", "diagnosis", "deciding", *MODEL, "train"},
    "cli": {
        *DATA,
        "pipeline",
        *MODEL,
        "train",
        "evaluate",
        "export",
        "report",
        "bench",
        "diagnosis",
    },
    "__init__": {*GROUND, "recipe", "pipeline", "watching"},
    "__main__": {"cli"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path):
    """Names of sslpipe that a file imports, as ("sslpipe", "room", ...), wherever it does so."""
    package = ("sslpipe", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            full = (*base, *node.module.split(".")) if node.module else base
            names = [(*full, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
        else:
            continue
        yield from (name for name in names if name[0] == "sslpipe" and len(name) > 1)


def imported_rooms(path):
    """Rooms of sslpipe that a file imports."""
    return {name[1] for name in imported(path)}


def module(path):
    """The name of a file as a module; that of a package is its folder."""
    name = ("sslpipe", *path.relative_to(PACKAGE).with_suffix("").parts)
    return name[:-1] if name[-1] == "__init__" else name


MODULES = {module(path): path for path in FILES}


def imported_modules(path):
    """Modules of sslpipe that a file imports: a name in one, or the module itself."""
    found = {name if name in MODULES else name[:-1] for name in imported(path)}
    return (found & MODULES.keys()) - {module(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    here = room(path)
    assert here in ALLOWED, f"{path}: give the new room its place in ALLOWED"
    wrong = imported_rooms(path) - ALLOWED[here] - {here}
    assert not wrong, f"{path} may not import {sorted(wrong)}"


def test_no_imports_go_in_a_circle():
    graph = {name: imported_modules(path) for name, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle = " > ".join(".".join(name) for name in reversed(error.args[1]))
        pytest.fail(f"move what they share below both: {circle}")


def test_the_walker_sees_modules():
    found = imported_modules(PACKAGE / "modalities" / "image" / "decider.py")
    assert ("sslpipe", "modalities", "image", "targets") in found  # from .targets import pretext
    assert ("sslpipe", "modalities") in found  # from .. import Tables
    assert len([name for path in FILES for name in imported_modules(path)]) > 1000


def test_the_walker_sees_imports_of_every_form():
    found = imported_rooms(PACKAGE / "modalities" / "image" / "draws.py")
    assert {"batch", "errors", "rng", "recipe"} <= found
    assert "methods" in imported_rooms(PACKAGE / "train" / "run.py")


def test_exports_are_sorted_complete_and_come_when_first_used():
    import sslpipe

    assert sslpipe.__all__ == sorted(sslpipe.__all__)
    for name in sslpipe.__all__:
        assert getattr(sslpipe, name).__name__ == name
    typed = ast.parse((PACKAGE / "__init__.py").read_text()).body
    (block,) = [node for node in typed if isinstance(node, ast.If)]
    names = [alias.name for node in block.body for alias in node.names]
    assert sorted(names) == sslpipe.__all__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        sslpipe.nothing  # noqa: B018


def test_help_waits_for_nothing_heavy():
    heavy = {"torch", "numpy", "pydantic", "yaml"}
    code = f"import sys, sslpipe.cli.commands; print(*{heavy} & sys.modules.keys())"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.split() == []


WORKERS = (  # what worker processes import
    "errors",
    "philox",
    "rng",
    "shards.index",
    "shards.tar_headers",
    "stream.worker",
    "modalities",
    "modalities.image.canvases",
    "modalities.image.decode",
    "modalities.audio",
    "modalities.audio.clips",
)
HEAVY = {"torch", "kornia", "pydantic", "typer", "rich", "fsspec", "PIL"}


@pytest.mark.parametrize("module", WORKERS)
def test_workers_wait_for_nothing_heavy(module):
    code = f"import sys, sslpipe.{module}; print(*{HEAVY} & sys.modules.keys())"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.split() == []
