"""Ctrl-C: a real signal to a real process, as a terminal sends it to all of a job."""

import os
import signal
import subprocess
import sys
import time

import pytest

from ..conftest import ROOT, write_images

WORDS = ("--shard-samples", "4", "--resize", "24", "--name", "set")


def start(folder, *words):
    """`sslpipe pack photos ...` as a job of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "sslpipe", "pack", "photos", *words, *WORDS],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a shell that starts a job in the background has it ignore Ctrl-C, and so its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )


def content(folder):
    """Name -> bytes of all that a packing leaves."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_packing_that_is_stopped_says_so_and_goes_on_to_the_same_bytes(tmp_path, workers):
    write_images(tmp_path / "photos", 600)
    with start(tmp_path, "out", "--workers", workers) as job:
        records = tmp_path / "out/.pack"
        while job.poll() is None and not [*records.glob("shard-*.json")]:
            time.sleep(0.002)
        os.killpg(job.pid, signal.SIGINT)
        out, err = job.communicate()
    assert (job.returncode, out) == (130, "")
    assert err == "stopped; the same command goes on where it stopped\n"
    assert not (tmp_path / "out/manifest.json").exists()
    done = len([*records.glob("shard-*.json")])
    assert 1 <= done < 150
    # the same command, and one that nobody stopped
    for folder in ("out", "whole"):
        with start(tmp_path, folder, "--workers", "1") as job:
            _, err = job.communicate()
        assert (job.returncode, "600/600 samples" in err) == (0, True)
    assert content(tmp_path / "out") == content(tmp_path / "whole")
