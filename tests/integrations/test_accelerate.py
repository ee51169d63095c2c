"""Accelerate: the state travels in its checkpoints, from two processes to one."""

import itertools
import json
import os
import subprocess
import sys

import pytest

from tests.servers import free_port

from .trainers import uids

SCRIPT = """
import json, sys
from accelerate import Accelerator
from sslpipe.integrations.accelerate import load_for
from tests.integrations.trainers import small

packed, folder, resume, count = sys.argv[1], sys.argv[2], sys.argv[3] == "resume", int(sys.argv[4])
accelerator = Accelerator(cpu=True)
pipe = load_for(accelerator, small(), shards=packed)
if resume:
    accelerator.load_state(folder)
seen = []
while len(seen) < count:
    for batch in pipe:
        seen.append(batch.uids.tolist())
        if len(seen) == count:
            break
if not resume:  # it would overwrite what a slower process has yet to load
    accelerator.save_state(folder)
with open(f"{folder}.{accelerator.process_index}.{'resumed' if resume else 'first'}", "w") as file:
    json.dump(seen, file)
pipe.close()
accelerator.end_training()
"""


def launch(script, *arguments, processes):
    """As torchrun does, without a process of its own that imports torch to wait for the others."""
    world = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            [sys.executable, script, *arguments],
            env={**os.environ, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(processes)
    ]  # fmt: skip
    said = [rank.communicate(timeout=240)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * processes, "".join(said)[-3000:]


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_saved_on_two_processes_resumed_on_one_and_on_two(packed, tmp_path, monkeypatch, processes):
    """Inside an epoch of five batches."""
    script, folder = tmp_path / "script.py", tmp_path / "state"
    script.write_text(SCRIPT)
    monkeypatch.setenv("PYTHONPATH", ".")
    launch(script, packed, folder, "new", "3", processes=2)
    launch(script, packed, folder, "resume", "2", processes=processes)
    plain = [sorted(step) for step in uids(packed, 5)]
    assert seen(tmp_path, "first", 2) == plain[:3]
    assert seen(tmp_path, "resumed", processes) == plain[3:5]


def seen(folder, run, processes):
    """The uids of all ranks, by step."""
    files = [folder / f"state.{rank}.{run}" for rank in range(processes)]
    ranks = [json.loads(file.read_text()) for file in files]
    return [sorted(itertools.chain(*step)) for step in zip(*ranks, strict=True)]
