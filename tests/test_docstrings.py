"""What the docstrings of the package owe to their readers."""

import ast
import re
from functools import cache

import pytest

from .test_layers import PACKAGE, ROOMS, tree
from .test_names import shown

INNER = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


@cache
def errors():
    body = tree(PACKAGE / "errors.py").body
    return {node.name for node in body if isinstance(node, ast.ClassDef)}


def raised(function):
    """Our own errors that the statements of a function raise, those of inner functions aside."""
    found, left = set(), list(function.body)
    while left:
        node = left.pop()
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            found |= {getattr(node.exc.func, "id", None)} & errors()
        if not isinstance(node, INNER):
            left += ast.iter_child_nodes(node)
    return found


def public(module):
    """Functions, and methods of classes; each with the docstring that speaks for it."""
    for node in module.body:
        if node.__class__ in INNER and not node.name.startswith("_"):
            said = ast.get_docstring(node) or ""
            if not isinstance(node, ast.ClassDef):
                yield node, said
                continue
            for part in node.body:
                if isinstance(part, ast.FunctionDef):
                    own = ast.get_docstring(part) or ""
                    if re.fullmatch("__init__|__post_init__", part.name):
                        yield part, f"{said}\n\n{own}"
                    elif not re.match("_(?!_)", part.name):
                        yield part, own


def untold(module):
    """Yield who raises an error of ours that stands neither below `Raises:` nor in `Raise a ...`.

    The second is the whole docstring of a check: `Raise a ShardError unless ...`.
    """
    for function, said in public(module):
        told = said.partition("Raises:")[2]
        if said.startswith("Raise "):
            told += said.partition("\n\n")[0]
        missing = {name for name in raised(function) if not re.search(rf"\b{name}\b", told)}
        if missing:
            yield function, sorted(missing)


@pytest.mark.parametrize("here", ROOMS)
def test_who_raises_says_what_and_when(here):
    pairs = [(path, *each) for path in ROOMS[here] for each in untold(tree(path))]
    found = [f"{shown(path, node)}: {node.name}: {names}" for path, node, names in pairs]
    assert not found, "say below `Raises:` when it is raised:\n" + "\n".join(found)


def test_the_search_for_untold_errors_finds_them():
    module = ast.parse(
        '''
def plain(): raise ShardError("x") from None
def told():
    """A.

    Raises:
        ShardError: b.
    """
    raise ShardError("x")
def other():
    """A.

    Raises:
        ShardError: b.
    """
    raise StateError("x")
def check():
    """Raise a ShardError if it rains."""
    raise ShardError("x")
class Thing:
    """A; a ShardError."""
    def __init__(self): raise ShardError("x")
    def outer(self):
        def inner(): raise ShardError("x")
    def _own(self): raise ShardError("x")
    def __call__(self): raise ShardError("x")
def _private(): raise ShardError("x")
def foreign(): raise ValueError("x")
'''
    )
    assert [(node.name, names) for node, names in untold(module)] == [
        ("plain", ["ShardError"]),
        ("other", ["StateError"]),
        ("__init__", ["ShardError"]),
        ("__call__", ["ShardError"]),
    ]
