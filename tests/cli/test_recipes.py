"""`sslpipe recipes` says what the files say; `--version` waits for nothing heavy."""

import importlib.metadata
import json
import platform
import re
import subprocess
import sys

import pytest
from rich.console import Console

from sslpipe.cli import recipes as command
from sslpipe.recipe.parse import recipes

from ..conftest import ROOT


@pytest.fixture(scope="module")
def listed():
    return {name: command.listed(name, path) for name, path in recipes().items()}


def test_every_recipe_is_listed_with_the_views_that_batches_hold(listed):
    assert listed.keys() == recipes().keys()
    assert listed["dino"].views == {"global": (2, (3, 224, 224)), "local": (8, (3, 96, 96))}
    assert listed["jigsaw"].views == {"global": (9, (3, 64, 64))}  # tiles, not the view they are of
    assert listed["clip_b16"].views == {"global": (1, (3, 224, 224)), "text": (1, (77,))}
    row = listed["ijepa"]
    assert (row.method, row.masks, row.targets) == ("ijepa", ("context", "targets"), ())
    assert (listed["rotation"].targets, listed["rotation"].backbone) == (("rotation",), "resnet50")


def test_numbers_are_those_of_the_page(listed):
    """Two places state them: the heads of the recipes, and the table of pipelines/README.md."""
    page = (ROOT / "pipelines" / "README.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", page, re.MULTILINE))
    stated = {name for name, row in listed.items() if row.measured}
    assert len(stated) == 36
    for name, row in listed.items():
        found = [f"{n} {v:.2f} ({u:.2f})" for n, (v, u) in row.measured.items()]
        numbers = re.findall(r"(?:k-NN|linear) [\d.]+ \([\d.]+\)", rows[name])
        assert len(numbers) == len({"k-NN", "linear"} & row.measured.keys()), name
        assert len(numbers) == (2 if name in stated else 0)
        assert found[: len(numbers)] == numbers


def test_a_head_without_the_line_states_nothing():
    assert command.measured("# Measured by hand: k-NN 0.5\nstream: {}") == {}
    text = "# A.\n# measured: k-NN 0.3 (untrained 0.25), NMI 0.401 (untrained 0.1)\n"
    assert command.measured(text) == {"k-NN": (0.3, 0.25), "NMI": (0.401, 0.1)}
    assert command.measured(text.replace(", NMI", "; of the middle 0.1, NMI")) == (
        command.measured(text)
    )


def test_the_table_and_the_list(monkeypatch, capfd, listed):
    monkeypatch.setattr(command, "listed", lambda name, path: listed[name])
    monkeypatch.setattr(command, "console", Console(width=100))
    command.list_recipes(as_json=False)
    table = capfd.readouterr().out
    (line,) = [line for line in table.splitlines() if line.split()[:1] == ["simclr_cifar"]]
    assert " ".join(line.split()) == "simclr_cifar 2 x 32 simclr resnet18 0.33 (0.26) 0.37 (0.33)"
    assert all(name in table for name in listed)
    command.list_recipes(as_json=True)
    rows = json.loads(capfd.readouterr().out)
    (row,) = [row for row in rows if row["name"] == "simclr_cifar"]
    assert row["measured"]["fine-tuned"] == [0.296, 0.266]
    assert row["path"].endswith("simclr_cifar.yaml")


def test_versions_come_without_torch():
    code = (
        "import sys; sys.argv = ['sslpipe', '--version']\n"
        "from sslpipe.cli.commands import app\n"
        "try: app()\n"
        "finally: print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    ours, torch = (importlib.metadata.version(name) for name in ("sslpipe", "torch"))
    said = f"sslpipe {ours}, torch {torch}, Python {platform.python_version()}"
    assert run.stdout.splitlines() == [said, "False"]
