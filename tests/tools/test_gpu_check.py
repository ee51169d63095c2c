"""The script for GPU machines runs; what it measures there is another matter."""

import subprocess
import sys

import pytest

from ..conftest import ROOT, dry_rows, load_tool

COLLECT = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[1].split(",")))  # None: as if not installed
sys.path.insert(0, "tools/bench")
import gpu_parts, pytest
words = ["--collect-only", "-m", "gpu", "-p", "no:cacheprovider"]
sys.exit(pytest.main(words + gpu_parts.gpu_tests()))
"""


@pytest.mark.slow
def test_its_tests_need_no_package_beyond_the_wheels_it_brings():
    absent = "aiohttp,lightly,moto,pyarrow,ray,s3fs,sklearn,tensorboard,wids"
    command = [sys.executable, "-c", COLLECT, absent]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    named = {line.partition("::")[0] for line in done.stdout.splitlines() if "::" in line}
    assert {"tests/modalities/image/test_gpu.py", "tests/methods/test_cuda.py"} <= named


def right(rows):
    """Whether there are rows, and every one is a measurement."""
    return rows and all(row.get("done_ms", row.get("of_step", 0)) > 0 for row in rows)


@pytest.mark.slow
def test_a_part_runs_in_a_process_of_its_own(tmp_path):
    rows = dry_rows(tmp_path, "decode")
    assert {row["part"] for row in rows} == {"decode"}
    assert right(rows)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["views", "modalities", "wall", "compiled"])
def test_its_timings_run_on_a_cpu(part, monkeypatch):
    gpu_parts = load_tool("gpu_parts")
    monkeypatch.syspath_prepend(ROOT / "tools" / "bench")  # whose neighbours the parts import
    assert right(list(gpu_parts.MEASURED[part](gpu_parts.DRY)))
