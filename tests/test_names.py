"""One name, one meaning; small parts, but not crumbs: what the whole package is checked for."""

import ast
import statistics
from collections import defaultdict
from functools import cache

import pytest

from .conftest import ROOT
from .test_layers import FILES, MODULES, ROOMS, imported, tree

FEW, SHORT = 8, 50  # files with fewer lines than SHORT
LONGEST_FILE, LONGEST_FUNCTION, MEDIAN_FUNCTION = 300, 50, 8


def shown(path, node=None):
    """`sslpipe/room/file.py:line`."""
    return f"{path.relative_to(ROOT)}{f':{node.lineno}' if node else ''}"


def nodes(*kinds):
    """All nodes of these kinds in the package, with their files."""
    return [(path, n) for path in FILES for n in ast.walk(tree(path)) if isinstance(n, kinds)]


def lines_of(function):
    """Lines from its docstring or first statement on; a signature is a declaration."""
    return function.end_lineno - function.body[0].lineno + 1


@cache
def functions():
    return nodes(ast.FunctionDef, ast.AsyncFunctionDef)


def test_no_two_classes_have_one_name():
    places = defaultdict(list)
    for path, node in nodes(ast.ClassDef):
        places[node.name].append(shown(path, node))
    twice = [f"{name}: {', '.join(found)}" for name, found in places.items() if len(found) > 1]
    assert not twice, "rename all but one of\n" + "\n".join(twice)


SAME = {  # they mean the same wherever they stand, each of its own modality, file or library
    "check_whole", "evaluation_views", "extension_of", "held_out", "library", "on_sphere",
    "opened", "perplexity", "sheet", "thumbnails", "unsupported",
}  # fmt: skip
LATER = {"chosen_tokens", "decoded", "vocabulary_of"}  # they have yet to get other names


def test_functions_that_others_import_have_names_of_their_own():
    wanted = {(name[-1], MODULES.get(name[:-1])) for path in FILES for name in imported(path)}
    places = defaultdict(list)
    for path in FILES:
        for node in tree(path).body:
            if isinstance(node, ast.FunctionDef) and (node.name, path) in wanted:
                places[node.name].append(shown(path, node))
    twice = {name: found for name, found in places.items() if len(found) > 1}
    wrong = [f"{name}: {', '.join(twice[name])}" for name in sorted(twice.keys() - SAME - LATER)]
    assert not wrong, "rename all but one of\n" + "\n".join(wrong)
    assert twice.keys() >= SAME
    assert len(places) > 500


def renaming(path, node):
    """The aliases of an import of our own that give another name."""
    own = isinstance(node, ast.ImportFrom) and node.level > 0
    names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
    for alias in node.names:
        ours = own or any(name.split(".")[0] == "sslpipe" for name in [*names, alias.name])
        if ours and alias.asname not in (None, alias.name):
            yield f"{shown(path, node)}: {alias.name} as {alias.asname}"


def test_nothing_of_ours_is_imported_under_another_name():
    found = [text for pair in nodes(ast.Import, ast.ImportFrom) for text in renaming(*pair)]
    assert not found, "import these under their own names:\n" + "\n".join(found)


def test_the_search_for_other_names_finds_them():
    text = "from ..a import b as c\nimport sslpipe.d as e\nimport numpy as np\nfrom .f import g"
    found = [text for node in ast.parse(text).body for text in renaming(FILES[0], node)]
    assert [line.split(": ")[1] for line in found] == ["b as c", "sslpipe.d as e"]


def test_what_builds_says_what_it_builds():
    found = [shown(path, node) for path, node in functions() if node.name == "build"]
    assert not found, f"say what is built, as build_encoder does: {', '.join(found)}"


def test_files_are_seldom_crumbs():
    small = {
        shown(path): path.read_text().count("\n")
        for path in FILES
        if path.name not in ("__init__.py", "__main__.py")
    }
    small = {name: lines for name, lines in small.items() if lines < SHORT}
    listed = "\n".join(f"{lines:3} {name}" for name, lines in sorted(small.items()))
    assert len(small) <= FEW, f"move all but {FEW} of these to where they are used:\n{listed}"


@pytest.mark.parametrize("here", ROOMS)
def test_files_stay_short(here):
    counts = {shown(path): path.read_text().count("\n") for path in ROOMS[here]}
    assert not {name: lines for name, lines in counts.items() if lines > LONGEST_FILE}


def test_functions_stay_short():
    counts = {f"{shown(*pair)}: {pair[1].name}": lines_of(pair[1]) for pair in functions()}
    assert not {name: lines for name, lines in counts.items() if lines > LONGEST_FUNCTION}


def test_half_of_all_functions_are_tiny():
    assert statistics.median(lines_of(node) for _, node in functions()) <= MEDIAN_FUNCTION
