"""The script for GPU machines runs; what it measures there is another matter."""

import json
import os
import subprocess
import sys

import pytest

from ..conftest import ROOT

COLLECT = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[1].split(",")))  # None: as if not installed
sys.path.insert(0, "tools/bench")
import gpu_parts, pytest
words = ["--collect-only", "-m", "gpu", "-p", "no:cacheprovider"]
sys.exit(pytest.main(words + gpu_parts.gpu_tests()))
"""


def test_its_tests_need_no_package_beyond_the_wheels_it_brings():
    absent = "aiohttp,lightly,moto,pyarrow,ray,s3fs,sklearn,tensorboard,wids"
    command = [sys.executable, "-c", COLLECT, absent]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    named = {line.partition("::")[0] for line in done.stdout.splitlines() if "::" in line}
    assert {"tests/modalities/image/test_gpu.py", "tests/methods/test_cuda.py"} <= named


@pytest.mark.slow
def test_its_timings_run_on_a_cpu(tmp_path):
    command = [sys.executable, ROOT / "tools" / "bench" / "gpu_parts.py", tmp_path, "--dry"]
    done = subprocess.run(
        [*command, "--parts", "views,step,decode"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert not [row for row in rows if "error" in row]
    assert {row["part"] for row in rows} == {"views", "step", "decode"}
    assert all(row.get("done_ms", row.get("fed_ms")) > 0 for row in rows)
