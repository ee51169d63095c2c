"""The pages for people with a trainer of their own run as they stand."""

import re
import subprocess
import sys

import pytest

from .conftest import ROOT
from .test_readme import EACH

PAGE = (ROOT / "pipelines" / "TRAINERS.md").read_text()
PARTS = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
BLOCKS = {
    part.splitlines()[0]: re.findall(r"```python\n(.*?)```", part, re.DOTALL) for part in PARTS
}


def run(blocks, tmp_path):
    files = [tmp_path / f"block{number}.py" for number in range(len(blocks))]
    for file, block in zip(files, blocks, strict=True):
        file.write_text(block)
    done = subprocess.run(
        [sys.executable, "-c", EACH, *files], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_blocks_run(tmp_path):
    """Each alone, one after another in one process, which imports torch once."""
    assert len(BLOCKS["Lightning"]) == 1
    assert len(BLOCKS["Accelerate"]) == 1
    assert len(BLOCKS["The Trainer of Hugging Face"]) == 1
    blocks = [block for found in BLOCKS.values() for block in found]
    assert len(blocks) >= 11
    run(blocks, tmp_path)


def test_the_block_of_stable_pretraining_runs_where_it_is_installed(tmp_path):
    """It changes every Trainer of an environment, so that of these tests does not have it."""
    pytest.importorskip("stable_pretraining", reason="wants an environment of its own")
    (block,) = re.findall(r"<!-- where it is installed -->\n```py\n(.*?)```", PAGE, re.DOTALL)
    run([block], tmp_path)


def test_every_block_of_python_is_run():
    assert PAGE.count("```py") == sum(map(len, BLOCKS.values())) + 1


def test_the_script_for_slurm_is_a_script():
    (script,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    done = subprocess.run(["bash", "-n"], input=script, text=True, check=False, capture_output=True)
    assert done.returncode == 0, done.stderr
