"""The README tells the truth: its Python runs, its files exist, its commands are commands."""

import re
import subprocess
import sys

import pytest

from .conftest import ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_python_blocks_run(block):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_file_of_the_package_stands_in_the_map():
    drawn = README.split("## The map")[1].split("```")[1]
    for path in [*(ROOT / "sslpipe").glob("*.py"), *(ROOT / "sslpipe").glob("*/")]:
        if not path.name.startswith("__"):
            assert path.name in drawn, f"{path.name} is missing from the map"
    for path in (ROOT / "sslpipe" / "methods").glob("[a-z]*.py"):
        assert path.stem in drawn


def test_links_lead_somewhere():
    for page in (
        ROOT / "README.md",
        ROOT / "pipelines" / "README.md",
        ROOT / "shards" / "README.md",
    ):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_commands_are_commands():
    from sslpipe.cli.commands import app

    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    used = set(re.findall(r"^sslpipe (\w+)", README, re.MULTILINE))
    assert used <= known
    assert known <= set(re.findall(r"\w+", README))


def test_the_schema_page_names_every_key_and_op():
    from sslpipe.modalities.image.draws import OPS
    from sslpipe.recipe import Recipe
    from sslpipe.recipe.schema import SECTIONS

    page = (ROOT / "pipelines" / "README.md").read_text()
    for section in Recipe.model_fields:
        if section != "path":
            assert f"`{section}" in page
    for name, model in SECTIONS.items():
        for key in model.model_fields:
            assert re.search(rf"`{name}\.(\w+\.)?{key}`", page), f"{name}.{key}"
    for op in OPS:
        assert f"`{op}`" in page


def test_every_recipe_stands_in_the_table():
    page = (ROOT / "pipelines" / "README.md").read_text()
    for path in (ROOT / "pipelines").glob("*/*.yaml"):
        assert f"| `{path.stem}` |" in page
