"""The README tells the truth: its Python runs, its files exist, its commands are commands."""

import ast
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


EACH = """
import runpy, sys
for block in sys.argv[1:]:
    print(block)
    runpy.run_path(block)  # in a namespace of its own
"""


def test_python_blocks_run(tmp_path):
    """Each alone, one after another in one process: to import torch for each takes most of it."""
    files = [tmp_path / f"block{number}.py" for number in range(len(BLOCKS))]
    for file, block in zip(files, BLOCKS, strict=True):
        file.write_text(block)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", EACH, *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert len(BLOCKS) >= 3
    assert done.returncode == 0, done.stdout + done.stderr


MAP = README.split("### The map")[1].split("```")[1].strip("\n").splitlines()


def drawn():
    """Path from the root -> its line, of all that the map names."""
    open_folders, found = [], {}
    for line in MAP:
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        open_folders[depth:] = [name.removesuffix("/*").rstrip("/")]
        found["/".join(open_folders) + ("/*" if name.endswith("/*") else "")] = line
    return found


def files_of_the_map():
    """All that the map must name: the code, recipes, pages and scripts of the six folders."""
    tracked = ("sslpipe", "pipelines", "shards", "tests", "tools")
    for path in sorted(path for folder in tracked for path in (ROOT / folder).rglob("*")):
        hidden = any(part.startswith((".", "__pycache__")) for part in path.parts)
        if path.is_file() and not hidden and path.suffix != ".pyc":
            yield str(path.relative_to(ROOT))


def is_drawn(file, found):
    """By its own line, by that of a folder above it, or with the others of its kind."""
    folders = [f"{folder}/*" for folder in Path(file).parents]
    if Path(file).name == "__init__.py" and file != "sslpipe/__init__.py":
        return True  # it stands for its folder
    return file in found or any(f in found or f"{f[:-1]}test_*.py" in found for f in folders)


def test_the_map_names_every_file():
    missing = [file for file in files_of_the_map() if not is_drawn(file, drawn())]
    assert not missing, (
        "README.md, The map: add a line, or NAME/* of the folder, for\n" + "\n".join(missing)
    )


def test_the_map_names_nothing_that_does_not_exist():
    gone = [line for path, line in drawn().items() if not list(ROOT.glob(path))]
    assert not gone, "README.md, The map: take out\n" + "\n".join(gone)


def test_the_map_says_something_of_every_file():
    for path, line in drawn().items():
        whole = path.startswith("tests/") and path.endswith("/*")  # these mirror the package
        folder = line.rstrip().endswith("/")
        assert whole or folder or len(line.split()) > 2, f"README.md, The map: describe {path}"


TRIPS = re.findall(
    r"^\w\S+\.py > .+$", (ROOT / ".github" / "CONTRIBUTING.md").read_text(), re.MULTILINE
)


def imported(file):
    """Files of the package that a file imports, wherever the import stands."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = file.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            for place in (base, *(base / alias.name for alias in node.names)):
                found |= {place.with_suffix(".py"), place / "__init__.py"}
    return {path for path in found if path.exists()}


@pytest.mark.parametrize("trip", TRIPS)
def test_a_trip_goes_along_imports(trip):
    files = [ROOT / "sslpipe" / word for word in trip.split(" > ")]
    for file in files:
        assert file.exists(), (
            f"CONTRIBUTING.md: {file.relative_to(ROOT)} does not exist; mend {trip}"
        )
    for here, there in itertools.pairwise(files):
        assert there in imported(here) or here in imported(there), (
            f"CONTRIBUTING.md: neither of {here.relative_to(ROOT)} and {there.relative_to(ROOT)} "
            f"imports the other; mend {trip}"
        )


def test_there_are_four_trips_of_three_lines():
    assert len(TRIPS) == 12


PAGES = [ROOT / "README.md", ROOT / ".github" / "CONTRIBUTING.md", ROOT / "shards" / "README.md"]
PAGES += sorted((ROOT / "pipelines").glob("*.md"))


def anchors(page):
    """What its headings are called in links."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_links_lead_somewhere(page):
    text = page.read_text()
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        there = page.parent / file if file else page
        assert there.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(there), f"{page}: {target}"
    for file in re.findall(r"`((?:sslpipe|tests|tools|pipelines|shards)/[\w/.]+\.\w+)`", text):
        assert (ROOT / file).exists(), f"{page}: {file}"


def test_commands_are_commands():
    from sslpipe.cli.commands import app

    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    used = set(re.findall(r"^sslpipe ([\w-]+)", README, re.MULTILINE))
    assert used <= known
    assert known <= {*re.findall(r"\w+", README), *re.findall(r"[\w-]+", README)}


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


def test_no_line_of_a_table_is_long():
    for page in ("README.md", "pipelines/README.md"):
        long = [line for line in (ROOT / page).read_text().splitlines() if len(line) > 200]
        tables = [line for line in long if line.startswith("|")]
        assert not tables, f"{page}: split or shorten, to 200 characters\n" + "\n".join(tables)


def test_the_glob_of_the_readme_reads_tars_of_any_number():
    """A range of numbers would fail on a set that is smaller or larger than ours was."""
    (pattern,) = re.findall(r'WebDataset\(sorted\(glob\.glob\("shards/photos/(.*?)"\)', README)
    assert len(list((ROOT / "shards" / "sample").glob(pattern))) == 4


def test_the_readme_says_how_an_exported_encoder_is_loaded(tmp_path, monkeypatch):
    """As it stands there, on an export of the backbone of the demo."""
    from sslpipe.export import ExportSettings, export_checkpoint

    from .export.saved import saved

    (block,) = re.findall(r"<!-- exported -->\n```py\n(.*?)```", README, re.DOTALL)
    saved(tmp_path / "run/last.pt", "resnet18", side=64)
    settings = ExportSettings(formats=("timm", "hf", "torchvision"))
    export_checkpoint(tmp_path / "run", tmp_path / "exported", settings)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names: dict = {}
    exec(block, names)
    assert names["lacking"] == (["fc.weight", "fc.bias"], [])
    assert type(names["model"]).__name__ == "ResNet"
    assert type(names["wrapped"]).__name__ == "TimmWrapperModel"
