"""The script for GPU machines runs; what it measures there is another matter."""

import json
import os
import subprocess
import sys

import pytest

from .conftest import ROOT


@pytest.mark.slow
def test_its_timings_run_on_a_cpu(tmp_path):
    command = [sys.executable, ROOT / "tools" / "gpu_parts.py", tmp_path, "--dry"]
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
