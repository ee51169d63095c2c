"""Workers of scripts of all sorts, and what is left of them however a script ends."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.streaming import load

SECONDS = 15  # until the kernel has ended what it must


@pytest.fixture(scope="module")
def truth(packed):
    """The ids of an epoch."""
    with load(packed, "run.workers=0") as pipe:
        return [int(uid) for batch in pipe for uid in batch.uids]


@pytest.fixture
def environment(tmp_path):
    """Of a script: it finds the package and the tests, and has a place of its own for files."""
    (tmp_path / "temp").mkdir()
    return {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "temp")}


def called(command, environment, cwd):
    """What a script says, a line of JSON."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


ENDS = """
import json, os, sys, time
from tests.stream.scripts_pipe import opened

pipes = opened(), opened(as_dicts=True)
for pipe in pipes:
    next(iter(pipe))
end, pids = sys.argv[2], [pid for pipe in pipes for pid in pipe.loading.crew.pids]
child = os.fork() if end == "wait" else 0  # it inherits all that is open, and outlives the script
if end == "wait" and not child:
    time.sleep(60)
    os._exit(0)
print(json.dumps(pids), flush=True)
if end == "raise":
    raise RuntimeError("on purpose")
if end == "wait":
    time.sleep(60)
"""


def alive(pid):
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def opened_files(pid):
    """What a process has open, by name."""
    names = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            names.append(str(entry.readlink()))
        except OSError:  # it is closed by now
            continue
    return names


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("end", ["fall", "raise", "SIGINT", "SIGTERM", "SIGKILL"])
def test_no_worker_and_no_file_is_left(end, packed, environment, tmp_path):
    """Neither of a pipeline over shards nor of one over an iterable."""
    script = tmp_path / "script.py"
    script.write_text(ENDS)
    word = "wait" if end.startswith("SIG") else end
    with subprocess.Popen(
        [sys.executable, script, packed, word],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        pids = json.loads(process.stdout.readline())
        assert len(pids) == 4
        if word == "wait":
            assert all(alive(pid) for pid in pids)
            for pid in (process.pid, *pids):
                for name in opened_files(pid):
                    assert not name.startswith(("/dev/shm/", environment["TMPDIR"]))
            process.send_signal(signal.Signals[end])
        try:
            process.wait(SECONDS)
            deadline = time.monotonic() + SECONDS
            while any(map(alive, pids)) and time.monotonic() < deadline:
                time.sleep(0.02)
            assert not any(map(alive, pids))
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        said = process.stderr.read().decode()
    assert "Fatal" not in said
    assert said.count("Traceback") == (end in ("raise", "SIGINT"))
    assert list((tmp_path / "temp").iterdir()) == []


UNGUARDED = """
import json, multiprocessing
from torch.utils.data import DataLoader, IterableDataset
from tests.stream.scripts_pipe import opened, uids

print(json.dumps("once"), flush=True)
with opened() as pipe:
    print(json.dumps(uids(pipe)), flush=True)


def work():
    with opened() as pipe:
        print(json.dumps(uids(pipe)), flush=True)


context = multiprocessing.get_context("fork")
process = context.Process(target=work, daemon=True)
process.start()
process.join(60)
assert process.exitcode == 0


class Set(IterableDataset):
    def __iter__(self):
        with opened() as pipe:
            yield from uids(pipe)


loader = DataLoader(Set(), batch_size=None, num_workers=1, multiprocessing_context="fork")
print(json.dumps([int(uid) for uid in loader]), flush=True)
"""


def test_a_script_without_a_guard_daemonic_processes_and_data_loaders(
    packed, truth, environment, tmp_path
):
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED)
    assert called([script, packed], environment, tmp_path) == ["once", truth, truth, truth]


def test_a_command_line(packed, truth, environment, tmp_path):
    code = "from tests.stream.scripts_pipe import *; print(uids(opened()))"
    assert called(["-c", code, packed], environment, tmp_path) == [truth]


RANK = """
import json
from pathlib import Path
import sys
from tests.stream.scripts_pipe import opened

with opened() as pipe:
    said = [pipe.rank, pipe.world_size, [batch.uids.tolist() for batch in pipe]]
Path(sys.argv[2], str(pipe.rank)).write_text(json.dumps(said))
"""


def test_torchrun(packed, truth, environment, tmp_path):
    (tmp_path / "script.py").write_text(RANK)
    (tmp_path / "said").mkdir()
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    called([*run, "script.py", packed, tmp_path / "said"], environment, tmp_path)
    ranks = [json.loads((tmp_path / "said" / rank).read_text()) for rank in "01"]
    assert [rank[:2] for rank in ranks] == [[0, 2], [1, 2]]
    for step, halves in enumerate(zip(ranks[0][2], ranks[1][2], strict=True)):
        assert sorted([*halves[0], *halves[1]]) == sorted(truth[8 * step : 8 * step + 8])


def test_a_worker_imports_neither_torch_nor_what_is_as_slow():
    code = (
        "import sys, sslpipe.stream.worker, sslpipe.modalities.image.canvases; "
        "slow = 'torch', 'kornia', 'pydantic', 'numpy.ma', 'llvmlite'; "
        "print([name for name in slow if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
