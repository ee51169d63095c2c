"""Ctrl-C and SIGTERM: real signals to real processes, as a terminal sends them to all of a job."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sslpipe.cli.terminal import SWALLOWING
from sslpipe.modalities.text.codec import TextCodec
from sslpipe.modalities.text.training import single_bytes
from sslpipe.shards import PackSettings, pack

from ..conftest import ROOT, write_images

WORDS = ("--shard-samples", "4", "--resize", "24", "--name", "set")


def start(folder, *words):
    """`sslpipe pack photos ...` as a job of its own."""
    return begin(folder, "pack", "photos", *words, *WORDS)


def begin(folder, *words):
    """`sslpipe ...` as a job of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "sslpipe", *map(str, words)],
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


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos") / "photos"
    write_images(folder, 600)
    return folder


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_packing_that_is_stopped_says_so_and_goes_on_to_the_same_bytes(
    photos, tmp_path, run, workers
):
    (tmp_path / "photos").symlink_to(photos)
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
        _, err = run("pack", "photos", folder, "--workers", "1", *WORDS, cwd=tmp_path)
        assert "600/600 samples" in err
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """One shard of 400 documents of 30 kB, and a tokenizer."""
    folder = tmp_path_factory.mktemp("library")
    (folder / "books").mkdir()
    for number in range(400):
        words = " ".join(f"word{(number * k) % 997}" for k in range(4_000))
        (folder / f"books/{number}.txt").write_text(words)
    pack(folder / "books", folder / "set", PackSettings(codec=TextCodec()))
    data = single_bytes([], 260).to_str()
    (folder / "set/tokenizer.json").write_text(data)
    return folder


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_a_count_is_stopped_inside_of_a_tar_and_leaves_nothing_of_it(library, number, workers):
    words = ("tokenizer", "count", "set", "--ids", "--workers", workers)
    with begin(library, *words) as job:
        while job.poll() is None and not [*library.glob("set/.indexes-*/*.part")]:
            time.sleep(0.001)
        os.killpg(job.pid, number)
        out, err = job.communicate()
    assert (job.returncode, out) == (128 + number, "")
    assert err == "stopped; the same command goes on where it stopped\n"
    assert not [*library.glob("set/.indexes-*/*")]  # not half of the tar, not all
    assert not [*library.glob("set/*.tok")]


@pytest.mark.parametrize("words", [("verify", "set"), ("recipes",)], ids=lambda words: words[0])
def test_a_command_that_says_nothing_of_stops_says_that_it_stopped(library, words):
    with begin(library, *words) as job:
        status = Path(f"/proc/{job.pid}/status")
        while job.poll() is None and "SigCgt:\t0000000000004002" not in status.read_text():
            time.sleep(0.001)  # until its handler of SIGTERM, 2 ** 14, is there
        job.terminate()
        _, err = job.communicate()
    assert (job.returncode, err) == (143, "stopped; run the same command again\n")


SWALLOWS = """
import signal, sys
sys.path.insert(0, {folder!r})
from sslpipe.cli import commands, paths
def check():
    import swallows
    print("lost")
commands.check_current_folder = check
sys.argv = ["sslpipe", "recipes"]
commands.main()
"""


def test_code_called_by_the_compiler_is_known_to_swallow_a_stop():
    """ctypes drops what Python raises in there."""
    from llvmlite.binding import executionengine

    assert SWALLOWING.search(executionengine.__file__)
    assert SWALLOWING.search("<frozen importlib._bootstrap_external>")
    assert not SWALLOWING.search(__file__)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_a_stop_while_a_library_is_imported_that_swallows_it_is_not_lost(tmp_path, number):
    """As extensions in C do, which import others and go on without."""
    (tmp_path / "swallows.py").write_text(
        f"import os, signal\ntry:\n    os.kill(os.getpid(), {int(number)})\n"
        "    signal.sigtimedwait([], 5)\nexcept BaseException:\n    pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", SWALLOWS.format(folder=str(tmp_path))],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (128 + number, "")
    assert done.stderr == "stopped; run the same command again\n"
