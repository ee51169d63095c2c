"""pipelines/LOSSES.md and the table of recipes tell what there is."""

import ast
import importlib
import inspect
import re

import pytest

from sslpipe.methods import METHODS
from sslpipe.recipe import find_recipe, load_recipe, recipes

from .conftest import ROOT


def table(page, first):
    """Rows of the first table of a page whose first column is `first`: name -> cells."""
    text = (ROOT / "pipelines" / page).read_text()
    body = text[text.index(f"| {first} |") :].split("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in body]
    return {row[0].strip("`"): row[1:] for row in rows}


LOSSES = table("LOSSES.md", "method")
RECIPES = table("README.md", "recipe")
CALL = re.compile(r"`(\w+)\(([^)]*)\)`")


def test_every_method_has_a_row_and_every_row_a_method():
    assert set(LOSSES) == set(METHODS)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_losses_are_public_functions_of_the_method_with_these_parameters(name):
    loss, formula, shapes, paper = LOSSES[name]
    assert formula
    assert shapes
    assert re.match(r"arXiv:\d{4}\.\d{5}, (eq|sec|fig|alg)\. ", paper)
    if "torch.nn.functional" in loss:
        return
    calls = CALL.findall(loss)
    assert calls, f"write {loss!r} as `function(parameters)`"
    module = importlib.import_module(METHODS[name].__module__)
    for function, parameters in calls:
        signature = inspect.signature(getattr(module, function))
        written = [p for p in parameters.split(", ") if p != "*"]
        assert written == list(signature.parameters)


def test_every_loss_function_of_the_package_stands_in_the_table():
    written = {function for row in LOSSES.values() for function, _ in CALL.findall(row[0])}
    for path in (ROOT / "sslpipe" / "methods").glob("*.py"):
        functions = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef)]
        found = {f.name for f in functions if f.name.endswith("_loss")}
        assert found <= written, f"{path.name}: add {found - written} to LOSSES.md"


def side(settings):
    """Of a view: pixels, frames, tokens of a row, or how much sound."""
    if "frames" in settings:
        return f"{settings['frames']} frames"
    if "size" in settings:
        return settings["size"][0]
    if "seconds" in settings:
        return f"{settings['seconds']} s"
    return settings["length"] if "length" in settings else f"{settings['samples']:,} samples"


@pytest.mark.parametrize("name", sorted(recipes()))
def test_the_table_of_recipes_agrees_with_the_recipes(name):
    views, extras, loss, paper, status = RECIPES[name]
    recipe = load_recipe(find_recipe(name))
    sizes = [f"{g.count} x {side(g.ops[0].settings)}" for g in recipe.views.values()]
    assert views.startswith(" + ".join(sizes))
    if recipe.masks or recipe.targets:
        assert extras
    else:
        assert not extras or "not yet" in extras
    assert (loss == "views only") == (recipe.method is None)
    assert (status != "") == (recipe.method is not None)
    head = find_recipe(name).read_text().split("modality:")[0]
    assert paper.split(",")[0] in head
