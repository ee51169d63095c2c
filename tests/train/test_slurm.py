"""What the script for Slurm does in each task, on this machine: signals save, jobs go on."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT
from tests.servers import free_port

from .conftest import TINY_MAE

PAGE = (ROOT / "pipelines" / "TRAINERS.md").read_text()


def start(count, *words):
    """The line of the script that makes a task a rank, with what srun sets."""
    (rank,) = re.findall(r"^rank='(.*)'$", PAGE, re.MULTILINE)
    port, tasks = free_port(), []
    for number in range(count):
        environ = os.environ | {
            "SLURM_PROCID": str(number), "SLURM_LOCALID": str(number), "SLURM_NTASKS": str(count),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        command = ["bash", "-c", rank, "rank", sys.executable, "-m", "sslpipe", *map(str, words)]
        tasks.append(subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True))
    return tasks


def rows(out):
    file = out / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def interrupt(tasks, out, since, number):
    """Send a signal to all once there is a row of after `since`; exit codes and last words."""
    end = time.monotonic() + 200
    try:
        while not [row for row in rows(out) if row["step"] > since]:
            assert time.monotonic() < end
            assert all(task.poll() is None for task in tasks), [t.communicate() for t in tasks]
            time.sleep(0.2)
        for task in tasks:
            task.send_signal(number)
        said = [task.communicate(timeout=200)[1] for task in tasks]
    finally:
        for task in tasks:
            task.kill()
    return [task.returncode for task in tasks], said


@pytest.mark.slow
def test_a_signal_saves_on_all_ranks_and_one_goes_on(tmp_path, packed):
    recipe, out = tmp_path / "a.yaml", tmp_path / "run"
    recipe.write_text(TINY_MAE)
    words = ["train", recipe, "--shards", packed, "--out", out, "--device", "cpu"]
    words += ["--set", "train.epochs=10000"]
    codes, said = interrupt(start(2, *words), out, 0, signal.SIGTERM)
    assert codes == [143, 143], said
    stopped = rows(out)[-1]["step"]
    assert f"stopped after step {stopped} of" in said[0]
    codes, said = interrupt(start(1, *words, "--resume"), out, stopped, signal.SIGUSR1)
    assert codes == [138], said
    steps = [row["step"] for row in rows(out)]
    assert steps == sorted(set(steps))
    assert steps[-1] > stopped
