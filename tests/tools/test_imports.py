"""Scripts that no test runs, as they need a GPU or hours, find what they import of ours."""

import ast
import importlib
from importlib.util import find_spec

import pytest

from ..conftest import ROOT

SCRIPTS = sorted((ROOT / "tools").rglob("*.py"))


def imports_of_ours(path):
    """Yield (module, name) of each `from sslpipe... import name`, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text(), path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sslpipe":
            yield from ((node.module, alias.name) for alias in node.names)


def is_there(module, name):
    if hasattr(importlib.import_module(module), name):
        return True
    return find_spec(f"{module}.{name}") is not None


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_what_a_script_imports_of_ours_is_there(path):
    gone = [pair for pair in imports_of_ours(path) if not is_there(*pair)]
    assert not gone, f"{path.name} imports what is not there: {gone}"
